from mi_audit.audit.doctor import examine


def test_every_check_has_a_status(tmp_path):
    checks = {check.name: check for check in examine(tmp_path)}
    assert checks["torch"].status == "ok"
    assert str(tmp_path) in checks["cache"].found
    assert not list(tmp_path.rglob("probe"))


def test_a_cache_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    checks = {check.name: check for check in examine(tmp_path / "file" / "cache")}
    assert checks["cache"].status == "fail"
