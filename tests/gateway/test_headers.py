from __future__ import annotations

from tracer.gateway.headers import to_client, to_upstream

CLIENT = (
    (b"Host", b"gateway"),
    (b"Connection", b"keep-alive, X-Hop"),
    (b"x-hop", b"1"),
    (b"transfer-encoding", b"chunked"),
    (b"content-length", b"5"),
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"gzip, br"),
    (b"authorization", b"Bearer client"),
    (b"x-api-key", b"client"),
    (b"x-tracer-mode", b"auto"),
    (b"anthropic-beta", b"a"),
    (b"anthropic-beta", b"b"),
)


def test_a_client_keeps_its_credentials_and_unknown_headers_where_no_key_is_named() -> None:
    sent = to_upstream(CLIENT, auth="client", key=None, readable=True)
    assert sent == [
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer client"),
        (b"x-api-key", b"client"),
        (b"anthropic-beta", b"a"),
        (b"anthropic-beta", b"b"),
        (b"accept-encoding", b"identity"),
    ]


def test_a_key_takes_the_place_of_all_credentials() -> None:
    for auth, header in (
        ("bearer", (b"authorization", b"Bearer sk-1")),
        ("x-api-key", (b"x-api-key", b"sk-1")),
        ("api-key", (b"api-key", b"sk-1")),
    ):
        sent = to_upstream(CLIENT, auth=auth, key="sk-1", readable=True)  # type: ignore[arg-type]
        assert sent[-1] == header
        assert not [value for _, value in sent if b"client" in value]
    assert not [v for _, v in to_upstream(CLIENT, auth="none", key=None, readable=True) if b"client" in v]


def test_what_is_not_read_may_be_compressed_and_what_is_withheld_stays() -> None:
    sent = dict(to_upstream(CLIENT, auth="client", key=None, readable=False, withheld={b"authorization"}))
    assert sent[b"accept-encoding"] == b"gzip, br"
    assert b"authorization" not in sent
    silent = dict(to_upstream((), auth="client", key=None, readable=False))
    assert silent == {b"accept-encoding": b"identity"}


def test_an_answer_loses_what_belongs_to_its_connection_and_what_only_we_say() -> None:
    got = (
        (b"Content-Encoding", b"gzip"),
        (b"Content-Length", b"9"),
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Set-Cookie", b"a"),
        (b"Set-Cookie", b"b"),
        (b"x-tracer-decision", b"surrogate"),
    )
    assert to_client(got) == (
        (b"content-encoding", b"gzip"),
        (b"content-length", b"9"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    )
