"""Pages by subject. Every module here has a `router: APIRouter`, which the factory finds and includes."""
