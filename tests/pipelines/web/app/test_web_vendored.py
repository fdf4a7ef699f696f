"""Scripts of others: what is served is what the notice says, with its licence."""

import hashlib
import re
from pathlib import Path

from pipelines import web

VENDOR = Path(web.__path__[0]) / "static" / "vendor"


def test_every_script_is_as_the_notice_says_and_has_its_licence() -> None:
    notice = (VENDOR / "NOTICE.txt").read_text()
    named = dict(re.findall(r"^(\S+\.min\.js) .* ([0-9a-f]{64})$", notice, re.MULTILINE))
    assert set(named) == {p.name for p in VENDOR.glob("*.js")}
    for name, digest in named.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
        assert (VENDOR / name.replace(".min.js", ".LICENSE.txt")).stat().st_size > 500
    assert (VENDOR / "dagre.LICENSE.txt").is_file()


def test_our_scripts_and_styles_name_no_other_host() -> None:
    for file in (*VENDOR.parent.glob("*.js"), *VENDOR.parent.glob("*.css")):
        assert not re.search(r"https?://(?!www\.w3\.org)", file.read_text()), file.name
