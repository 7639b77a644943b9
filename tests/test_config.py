from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rendezvous import RendezvousParameters, config
from rendezvous.config import SETTINGS, Backend, settings_of

ROOT = Path(__file__).parents[1]


def params(backend: str = "etcd-v2", /, **options) -> RendezvousParameters:
    return RendezvousParameters(backend, "host:1", "job", 1, 2, **options)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files named cert, key, ca and password in the current directory; no password in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RENDEZVOUS_ETCD_PASSWORD", raising=False)
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text(name)
    (tmp_path / "password").write_text("secret\n")
    return tmp_path


# The table.


@pytest.mark.parametrize("backend", Backend)
def test_a_backend_has_each_key_once(backend):
    names = Counter(setting.name for setting in settings_of(backend))
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        (Backend.LEGACY, {"timeout", "last_call_timeout", "etcd_prefix", "protocol", "cacert", "cert", "key"}),
        (Backend.DYNAMIC_V2, {"read_timeout", "protocol", "ssl_cert", "ssl_cert_key", "ca_cert", "heartbeat_timeout"}),
    ],
)
def test_the_keys_of_torch_are_there(backend, names):
    assert names <= {setting.name for setting in settings_of(backend)}


def test_each_default_is_a_valid_value():
    for setting in SETTINGS:
        if setting.default not in ("", None):
            assert setting.read(params(**{setting.name: str(setting.default)})) == setting.default
        assert setting.read(params()) == setting.read(params(**{setting.name: None})) == setting.default


def test_the_table_in_the_documentation_is_up_to_date():
    check = [sys.executable, str(ROOT / "tools/settings.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


# Values.


def test_an_integer_may_be_a_text():
    assert config.JOIN_TIMEOUT.read(params()) == 600
    assert config.JOIN_TIMEOUT.read(params(join_timeout=" 5 ")) == 5
    assert config.RANK_HINT.read(params(rank_hint="-3")) == -3


@pytest.mark.parametrize("value", ["0", "-1", str(10**10)])
def test_an_integer_out_of_range_is_an_error_with_key_value_and_range(value):
    with pytest.raises(ValueError, match=f"'join_timeout' must be an integer from 1 to 1000000000, not {value}"):
        config.JOIN_TIMEOUT.read(params(join_timeout=value))


@pytest.mark.parametrize("value", ["soon", "", "1.5", 1.5, math.inf, math.nan, []])
def test_another_value_than_an_integer_is_an_error_with_key_and_value(value):
    with pytest.raises(ValueError, match="'join_timeout' must be an integer, not"):
        config.JOIN_TIMEOUT.read(params(join_timeout=value))


def test_the_last_call_of_the_legacy_backend_may_be_0():
    assert config.LEGACY_LAST_CALL_TIMEOUT.read(params(last_call_timeout="0")) == 0
    with pytest.raises(ValueError, match="'last_call_timeout' must be an integer from 0 to 1000000000, not -1"):
        config.LEGACY_LAST_CALL_TIMEOUT.read(params(last_call_timeout=-1))
    with pytest.raises(ValueError, match="'last_call_timeout' must be an integer from 1 to 1000000000, not 0"):
        config.LAST_CALL_TIMEOUT.read(params(last_call_timeout=0))


def test_a_boolean_may_be_a_text():
    assert config.UPSCALE.read(params()) is config.UPSCALE.read(params(upscale="true")) is True
    assert config.UPSCALE.read(params(upscale="no")) is False
    with pytest.raises(ValueError, match="'upscale' must be a truth value such as true or false, not 'perhaps'"):
        config.UPSCALE.read(params(upscale="perhaps"))


def test_a_choice_may_be_in_any_letter_case():
    assert config.PROTOCOL.read(params()) == "http"
    assert config.PROTOCOL.read(params(protocol=" HttpS ")) == "https"
    with pytest.raises(ValueError, match="'protocol' must be one of http, https, not 'ftp'"):
        config.PROTOCOL.read(params(protocol="ftp"))


def test_a_file_must_exist(files):
    with pytest.raises(ValueError, match=r"'ca_cert' names '/nowhere/ca\.pem', which is not a file"):
        config.CA_CERT.read(params(ca_cert="/nowhere/ca.pem"))
    assert config.CA_CERT.read(params(ca_cert=" ca ")) == "ca"
    assert config.CA_CERT.content(params(ca_cert="ca")) == b"ca"
    assert config.CA_CERT.content(params(ca_cert=" ")) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("prefix", "/a\nb", r"'prefix' must not contain control characters; it is '/a\\nb'"),
        ("prefix", "/a\udc80", r"'prefix' must not contain bytes that are not UTF-8; it is '/a\\udc80'"),
        ("username", "me\x00", "'username' must not contain control characters"),
        ("topology", "a\x1b[31m", "'topology' must not contain control characters"),
        ("password_file", "a\x7f", "'password_file' must not contain control characters"),
    ],
)
def test_a_text_must_be_printable(name, value, reason):
    with pytest.raises(ValueError, match=reason):
        config.check(params("etcd-v3", **{name: value}), Backend.COORDINATED)


@pytest.mark.parametrize("backend", Backend)
def test_the_run_id_and_the_address_must_be_printable(backend):
    for run_id, reason in (("", "must not be empty"), ("a\x00", "control"), ("\udcff", "bytes that are not UTF-8")):
        with pytest.raises(ValueError, match=f"The run id must not .*{reason}|The run id {reason}"):
            config.check(RendezvousParameters("b", "host", run_id, 1, 1), backend)
    with pytest.raises(ValueError, match="The local address must not contain control characters"):
        config.check(RendezvousParameters("b", "host", "job", 1, 1, "host\n"), backend)
    with pytest.raises(ValueError, match="The local address must not contain bytes that are not UTF-8"):
        config.check(RendezvousParameters("b", "host", "job", 1, 1, "\udcff"), backend)
    config.check(RendezvousParameters("b", "host", "Grüße/日本 %2F", 1, 1, "host"), backend)


# Relations.


@pytest.mark.parametrize(
    ("backend", "join"),
    [(Backend.COORDINATED, "join_timeout"), (Backend.DYNAMIC_V2, "join_timeout"), (Backend.LEGACY, "timeout")],
)
def test_the_last_call_is_shorter_than_the_time_to_join(backend, join):
    assert config.last_call_timeout(params(), backend) == 30
    assert config.last_call_timeout(params(**{join: "10"}), backend) == 5
    assert config.last_call_timeout(params(**{join: 1}), backend) == 0.5
    assert config.last_call_timeout(params(**{join: 10}, last_call_timeout=9), backend) == 9


@pytest.mark.parametrize("backend", [Backend.COORDINATED, Backend.DYNAMIC_V2, Backend.DYNAMIC_V3])
def test_a_last_call_that_is_too_long_is_an_error(backend):
    reason = r"'last_call_timeout' must be less than 'join_timeout', .* they are 10 and 10 seconds"
    for use in (config.check, config.last_call_timeout):
        with pytest.raises(ValueError, match=reason):
            use(params(join_timeout=10, last_call_timeout=10), backend)
        with pytest.raises(ValueError, match="Set a shorter 'last_call_timeout' or a longer 'join_timeout'"):
            use(params(last_call_timeout=700), backend)


def test_a_last_call_that_is_too_long_is_warned_about_on_the_legacy_backend(caplog):
    given = params(timeout=10, last_call_timeout=10)
    config.check(given, Backend.LEGACY)
    assert config.last_call_timeout(given, Backend.LEGACY) == 10
    assert len(caplog.messages) == 1
    assert "'last_call_timeout' must be less than 'timeout'" in caplog.text


@pytest.mark.parametrize(
    ("backend", "ca", "cert", "key"),
    [
        (Backend.COORDINATED, "ca_cert", "ssl_cert", "ssl_cert_key"),
        (Backend.DYNAMIC_V2, "ca_cert", "ssl_cert", "ssl_cert_key"),
        (Backend.DYNAMIC_V3, "ca_cert", "ssl_cert", "ssl_cert_key"),
        (Backend.LEGACY, "cacert", "cert", "key"),
    ],
)
@pytest.mark.usefixtures("files")
def test_certificates_need_https_and_each_other(backend, ca, cert, key):
    given = {ca: "ca", cert: "cert", key: "key"}
    secure = config.connection(params(protocol="https", **given), backend)
    assert (secure.protocol, secure.ca_cert, secure.cert, secure.key) == ("https", "ca", "cert", "key")
    for name, value in given.items():
        for protocol in ({}, {"protocol": "http"}):
            for use in (config.check, config.connection):
                with pytest.raises(
                    ValueError, match=f"'{name}' has no effect with 'protocol=http'.*Set 'protocol=https'"
                ):
                    use(params(**{name: value}, **protocol), backend)
    with pytest.raises(ValueError, match=f"'{key}' is the key of '{cert}', which is missing"):
        config.check(params(protocol="https", **{key: "key"}), backend)


@pytest.mark.usefixtures("files")
def test_one_file_may_contain_certificate_and_key_on_the_v2_api_alone():
    given = params(protocol="https", ssl_cert="cert")
    assert config.connection(given, Backend.DYNAMIC_V2).cert == "cert"
    assert config.connection(params(protocol="https", cert="cert"), Backend.LEGACY).cert == "cert"
    for backend in (Backend.COORDINATED, Backend.DYNAMIC_V3):
        with pytest.raises(ValueError, match=r"'ssl_cert' needs its private key: .* 'ssl_cert_key'"):
            config.check(given, backend)


def user(**options) -> tuple[str | None, str | None]:
    connection = config.connection(params(**options), Backend.DYNAMIC_V2)
    return connection.username, connection.password


def test_the_password_comes_from_its_file_or_the_environment(files, monkeypatch):
    assert user() == (None, None)
    with pytest.raises(ValueError, match=r"'username' needs a password: .* 'password_file'"):
        user(username="me")
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "from the environment")
    assert user() == (None, None)
    assert user(username="me") == ("me", "from the environment")
    (files / "password").write_text(" from a file \n")
    assert user(username="me", password_file="password") == ("me", " from a file ")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\n", "which is empty"), (b"a\nb", "control characters"), (b"\xff", "not UTF-8")]
)
def test_a_wrong_password_in_a_file_is_an_error_that_does_not_show_it(files, content, reason):
    (files / "password").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        user(username="me", password_file="password")
    assert repr(content.decode(errors="replace")) not in str(caught.value)


@pytest.mark.usefixtures("files")
def test_a_password_needs_a_user():
    with pytest.raises(ValueError, match="'password_file' has no effect without 'username'"):
        user(password_file="password")
    with pytest.raises(ValueError, match="'password' has no effect without 'username'"):
        user(password="secret")


@pytest.mark.usefixtures("files")
def test_a_password_on_the_command_line_works_and_is_warned_about(monkeypatch, caplog):
    assert user(username="me", password="open sesame", protocol="https") == ("me", "open sesame")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "name that with 'password_file'" in caplog.text
    assert "sesame" not in caplog.text
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "from the environment")
    assert user(username="me", password="open sesame") == ("me", "from the environment")


@pytest.mark.usefixtures("files")
def test_a_password_is_neither_shown_nor_pickled():
    for source in ({"password_file": "password"}, {"password": "secret"}):
        connection = config.connection(params(username="me", **source), Backend.COORDINATED)
        assert connection.password == "secret"
        assert "secret" not in repr(connection)
        assert b"secret" not in pickle.dumps(connection)
        assert b"secret" not in pickle.dumps(params(username="me", **source))
        assert "secret" not in repr(params(username="me", **source))
    with pytest.raises(ValueError, match="'password_file'"):
        _ = pickle.loads(pickle.dumps(connection)).password


@pytest.mark.usefixtures("files")
def test_the_password_is_removed_from_the_environment_and_remembered(monkeypatch):
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "from the environment")
    config.check(params(), Backend.DYNAMIC_V2)
    assert os.environ["RENDEZVOUS_ETCD_PASSWORD"]  # nobody has needed it yet
    config.check(params(username="me"), Backend.DYNAMIC_V2)
    assert "RENDEZVOUS_ETCD_PASSWORD" not in os.environ
    assert user(username="me") == user(username="me") == ("me", "from the environment")
    monkeypatch.setenv("RENDEZVOUS_ETCD_PASSWORD", "another")
    assert user(username="me") == ("me", "another")


@pytest.mark.usefixtures("files")
def test_a_password_over_plain_http_is_warned_about(caplog):
    user(username="me", password_file="password", protocol="https")
    assert not caplog.records
    user(username="me", password_file="password")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set 'protocol=https'" in caplog.text


@pytest.mark.usefixtures("files")
def test_a_malformed_password_is_not_shown():
    with pytest.raises(ValueError, match="'password' must not contain control characters") as caught:
        config.check(params(username="me", password="open\nsesame"), Backend.COORDINATED)
    assert "sesame" not in str(caught.value)


# Unknown keys.


def test_an_unknown_key_is_warned_about_with_the_nearest(caplog):
    given = params(join_timout="3", timeout=900, read_timeout=1, zzz=1, rank_policy="host")
    config.check(given, Backend.DYNAMIC_V2)
    missing = "is ignored: the rendezvous backend 'etcd-v2' does not have it"
    assert caplog.messages == [
        f"the configuration option 'join_timout' {missing}; did you mean 'join_timeout'?",
        f"the configuration option 'zzz' {missing}",
        f"the configuration option 'rank_policy' {missing} (it is an option of etcd-v3)",
    ]


@pytest.mark.parametrize(
    ("backend", "key", "hint"),
    [
        (Backend.COORDINATED, "cacert", "(it is an option of etcd); did you mean 'ca_cert'?"),
        (Backend.LEGACY, "join_timeout", "(it is an option of etcd-v3, etcd-v2); did you mean 'timeout'?"),
        (Backend.LEGACY, "prefix", "(it is an option of etcd-v3, etcd-v2 on the v3 API); did you mean 'etcd_prefix'?"),
    ],
)
def test_a_key_of_another_backend_is_warned_about(caplog, backend, key, hint):
    config.check(params(**{key: "x"}), backend)
    assert [message.endswith(hint) for message in caplog.messages] == [True], caplog.messages
