from __future__ import annotations

import pytest

from rendezvous import RendezvousParameters, config


def params(**options) -> RendezvousParameters:
    return RendezvousParameters("etcd-v2", "host:1", "job", 1, 2, **options)


def test_positive_int():
    assert config.positive_int(params(), "join_timeout", 600) == 600
    assert config.positive_int(params(join_timeout="5"), "join_timeout", 600) == 5


def test_natural_int():
    assert config.natural_int(params(), "last_call_timeout", 30) == 30
    assert config.natural_int(params(last_call_timeout="0"), "last_call_timeout", 30) == 0
    with pytest.raises(ValueError, match="'last_call_timeout' must be an integer from 0 to 1000000000, not -1"):
        config.natural_int(params(last_call_timeout=-1), "last_call_timeout", 30)


@pytest.mark.parametrize("value", ["0", "-1", str(10**10)])
def test_an_int_out_of_range_names_key_value_and_range(value):
    with pytest.raises(ValueError, match=f"'join_timeout' must be an integer from 1 to 1000000000, not {value}"):
        config.positive_int(params(join_timeout=value), "join_timeout", 600)


def test_what_is_not_a_number_names_key_and_value():
    with pytest.raises(ValueError, match="'join_timeout' must be an integer, not 'soon'"):
        config.positive_int(params(join_timeout="soon"), "join_timeout", 600)


def test_one_of_takes_any_letter_case():
    assert config.one_of(params(), "protocol", ("http", "https")) == "http"
    assert config.one_of(params(protocol=" HttpS "), "protocol", ("http", "https")) == "https"
    with pytest.raises(ValueError, match="'protocol' must be one of http, https, not 'ftp'"):
        config.one_of(params(protocol="ftp"), "protocol", ("http", "https"))


def test_a_file_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"'ca_cert' names '/nowhere/ca\.pem', which is not a file"):
        config.existing_file(params(ca_cert="/nowhere/ca.pem"), "ca_cert")
    (tmp_path / "ca.pem").write_text("x")
    assert config.existing_file(params(ca_cert=str(tmp_path / "ca.pem")), "ca_cert") == str(tmp_path / "ca.pem")


def test_the_password_comes_from_its_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("RENDEZVOUS_ETCD_PASSWORD", raising=False)
    assert config.password(params()) is None
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "from the environment")
    assert config.password(params()) == "from the environment"
    secret = tmp_path / "secret"
    secret.write_text(" from a file \n")
    assert config.password(params(password_file=str(secret))) == " from a file "
    secret.write_text("\n")
    with pytest.raises(ValueError, match=r"'password_file' names .* which is empty"):
        config.password(params(password_file=str(secret)))


def test_a_password_on_the_command_line_works_and_is_warned_about(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("RENDEZVOUS_ETCD_PASSWORD", raising=False)
    assert config.password(params(password="open sesame")) == "open sesame"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "name that with 'password_file'" in caplog.text
    assert "sesame" not in caplog.text
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "from the environment")
    assert config.password(params(password="open sesame")) == "from the environment"


def test_an_unknown_key_is_warned_about_with_the_nearest_known(caplog):
    given = params(join_timout="3", timeout=900, read_timeout=1, zzz=1)
    config.warn_of_unknown_keys(given, (*config.HANDLER_KEYS, "read_timeout"))
    assert [record.getMessage() for record in caplog.records] == [
        "the rendezvous backend 'etcd-v2' does not know the configuration option 'join_timout'; did you mean "
        "'join_timeout'?",
        "the rendezvous backend 'etcd-v2' does not know the configuration option 'zzz'",
    ]
