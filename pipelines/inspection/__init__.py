"""What a collection, a clip table or a dataset holds, and why: facts for `m4v data` and its page. No HTML here."""
