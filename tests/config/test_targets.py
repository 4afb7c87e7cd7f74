"""Targets: defaults merged in, ids, included files, and what one can be taken for."""

import pytest

CERTIFICATE = "tls: {ca: ca.pem, client_certificate: client.pem, client_key: client.key}"


def test_defaults_merge_by_key(target):
    """Labels, headers, tls and expect of a target are added to the defaults', key by key."""
    merged = target(
        "{url: http://a/, labels: {team: web, env: test}, headers: {X-One: own}, tls: {server_name: a}, expect: {}}",
        "{labels: {team: ops, site: a}, headers: {X-One: else, X-Two: default}, tls: {verify: no, min_version: 1.3}, "
        "expect: {status: [200]}}",
    )
    assert merged.labels == {"team": "web", "env": "test", "site": "a"}
    assert merged.headers == {"X-One": "own", "X-Two": "default"}
    assert (merged.tls.server_name, merged.tls.verify, merged.tls.min_version) == ("a", False, "1.3")
    assert merged.expect.status == ((200, 200),)


def test_header_names_have_no_case(target):
    """A header of the target replaces the default's however its name is written."""
    merged = target("{url: http://a/, headers: {x-one: own}}", "{headers: {X-ONE: default, X-Two: default}}")
    assert merged.headers == {"X-Two": "default", "x-one": "own"}


def test_all_else_replaces(target):
    """Of every other option the target's own stands in the default's place, whole."""
    merged = target(
        "{url: http://a/, interval: 5s, timeout: 1s, basic_auth: {username: own, password: own}, expect: {status: 404},"
        " redirects: 0, enabled: yes, body: own}",
        "{interval: 60s, timeout: 20s, basic_auth: {username: default, password: default}, expect: {status: [200]}, "
        "redirects: 5, enabled: no, body: default, method: PUT}",
    )
    assert (merged.interval, merged.timeout, merged.redirects, merged.enabled) == (5.0, 1.0, 0, True)
    assert (merged.basic_auth.username, merged.basic_auth.password) == ("own", "own")
    assert (merged.expect.status, merged.body, merged.method) == (((404, 404),), "own", "PUT")


def test_defaults_apply_to_the_short_form(target):
    """A target that is only its URL has the defaults too."""
    assert target("http://a/", "{interval: 60s, labels: {team: web}}").labels == {"team": "web"}


def test_defaults_apply_to_included_files(load_text, tmp_path):
    """So have the targets of included files."""
    (tmp_path / "more.yaml").write_text("- http://a/\n")
    (target,) = load_text("include: [more.yaml]\ndefaults: {interval: 60s}\n").targets
    assert target.interval == 60.0


@pytest.mark.parametrize(
    ("options", "timeout"),
    [("", 10.0), (", interval: 3s", 3.0), (", interval: 60s", 10.0), (", timeout: 30s", 30.0), (", interval: 1", 1.0)],
)
def test_timeout(options, timeout, target):
    """Without a timeout it is 10 s, or the interval where that is shorter; the interval itself is its bound."""
    assert target(f"{{url: http://a/{options}}}").timeout == timeout


def test_a_user_in_the_url(target):
    """A user in the URL is basic authentication, in place of the default's, and neither requested nor shown."""
    own = target("http://me:p%40ss@A.example:8080/x", "{basic_auth: {username: default, password: default}}")
    assert (own.basic_auth.username, own.basic_auth.password) == ("me", "p@ss")
    assert own.url == own.shown_url == own.id == "http://a.example:8080/x"


@pytest.mark.parametrize(
    ("url", "target_id"),
    [
        ("https://A.example", "https://a.example"),
        ("https://a.example/x?q=1&flag&token=x#top", "https://a.example/x?q=***&***&token=***"),
        ("https://me:hidden@a.example/", "https://a.example/"),
        ("https://a.example/%C3%A9?é", "https://a.example/%C3%A9?***"),
        ("https://a.example/é", "https://a.example/%C3%A9"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443/"),
    ],
)
def test_default_id(url, target_id, target):
    """A target without an id is called by its URL, without user, values of the query, and fragment."""
    assert target(f"'{url}'").id == target_id


@pytest.mark.parametrize(
    ("url", "requested"),
    [
        ("https://a.example/a b".replace(" ", "%20"), "https://a.example/a%20b"),
        ("HTTP://A.Example/Path?Q=é#x", "http://a.example/Path?Q=%C3%A9"),
        ("https://a.example?x", "https://a.example?x"),
        ("https://a.example./", "https://a.example./"),
        ("https://_dmarc.a.example/", "https://_dmarc.a.example/"),
    ],
)
def test_what_is_requested(url, requested, target):
    """The URL is requested as it was written, its host in lower case and quoted where it must be."""
    assert target(f"'{url}'").url == requested


def test_includes_are_sorted(load_text, tmp_path):
    """Included files come in the order of the patterns, sorted within one, each once; a folder may be absolute."""
    (tmp_path / "targets.d").mkdir()
    (tmp_path / "more.d").mkdir()
    for name in ("targets.d/b.yaml", "targets.d/a.yaml", "targets.d/c.txt", "targets.d/.hidden.yaml", "more.d/z.yaml"):
        (tmp_path / name).write_text(f"- http://{name.split('/')[1][0]}/\n")
    patterns = f"{tmp_path}/more.d/*, targets.d/*.yaml, targets.d/a.yaml, 'no-match-*'"
    config = load_text(f"include: [{patterns}]\ntargets: [http://first/]\n")
    assert [target.id for target in config.targets] == ["http://first/", "http://z/", "http://a/", "http://b/"]


def test_base_directory(load_text, tmp_path):
    """Includes and files are relative to the folder that was named, not to where the configuration stands for now."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "more.yaml").write_text("- {url: http://a/, body: {file: body.txt}}\n")
    (tmp_path / "base" / "body.txt").write_text("ping\n")
    (target,) = load_text("include: [more.yaml]\n", base_directory=tmp_path / "base").targets
    assert target.body == "ping"


@pytest.mark.parametrize("content", ["", "# none\n", "[]\n", "---\n", "~\n"])
def test_an_included_file_may_be_empty(content, load_text, tmp_path):
    """A file from which the last target went is no mistake."""
    (tmp_path / "more.yaml").write_text(content)
    assert len(load_text("include: [more.yaml]\ntargets: [http://a/]\n").targets) == 1


def test_a_configuration_included_through_a_link(problems_of, tmp_path):
    """The main file is found out under another name too."""
    (tmp_path / "link.yaml").symlink_to("config.yaml")
    (line,) = problems_of("include: [link.yaml]\n")
    assert '"link.yaml" matches this very file; ' in line


def test_certificates(target, tmp_path, authority, certificate):
    """CA, certificate and key are read with the configuration, and stand in it as PEM text."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    tls = target(f"{{url: https://a/, {CERTIFICATE}}}").tls
    assert tls.ca == authority.cert_pem.bytes().decode()
    assert tls.client_key == certificate.private_key_pem.bytes().decode()


def test_certificate_and_key_in_one_file(target, tmp_path, certificate):
    """A file with both needs no second one."""
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    assert target("{url: https://a/, tls: {client_certificate: both.pem}}").tls.client_key is None


def test_another_key(problems_of, tmp_path, authority, certificate):
    """A key that is not the certificate's is found before anything is measured."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    authority.issue_cert("other.example").private_key_pem.write_to_path(str(tmp_path / "client.key"))
    (line,) = problems_of(f"targets: [{{url: 'https://a/', {CERTIFICATE}}}]\n")
    assert line.endswith("the client_certificate does not belong to the client_key; name the two that do")


def test_a_default_certificate_and_the_key_of_a_target(target, tmp_path, certificate):
    """What must fit together is looked at once the defaults are merged in."""
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    assert target("{url: https://a/, tls: {client_key: client.key}}", "{tls: {client_certificate: client.pem}}")


def test_a_default_without_a_meaning_for_a_scheme_is_left_out(load_text):
    """Each target has of the defaults what is for its scheme; the others' stay as they are."""
    config = load_text(
        "defaults: {method: HEAD, count: 3, size: 64, recursion: no, headers: {X-A: b}, tls: {verify: no}, ip: 4, "
        "basic_auth: {username: me, password: hidden}, "
        "expect: {status: [204], loss: 0.5, rcodes: [NXDOMAIN], answer: [x]}}\n"
        "targets: [http://a/, icmp://a, dns://a/b]\n"
    )
    http, icmp, dns = config.targets
    assert (http.method, http.count, http.recursion, http.tls.verify, http.ip) == ("HEAD", 1, True, False, "4")
    assert (icmp.method, icmp.count, icmp.size, icmp.headers, icmp.basic_auth) == ("GET", 3, 64, {}, None)
    assert (dns.method, dns.count, dns.recursion, dns.tls.verify, dns.ip) == ("GET", 1, False, True, "4")
    assert (http.expect.status, http.expect.loss, http.expect.rcodes) == (((204, 204),), 0.0, ("NOERROR",))
    assert (icmp.expect.status, icmp.expect.loss, icmp.expect.answer) == (((200, 399),), 0.5, ())
    assert (dns.expect.loss, dns.expect.rcodes, dns.expect.answer) == (0.0, ("NXDOMAIN",), ("x",))


def test_expectations_of_answers(target):
    """One expression or several; a comma does not part them; words are in either case."""
    expect = target(
        "{url: 'dns://a/b', expect: {answer: '^a{1,2}, b$', answer_not: [x, ' y '], "
        "rcodes: 'nxdomain, rcode5', flags: ad}}"
    ).expect
    assert (expect.answer, expect.answer_not) == (("^a{1,2}, b$",), ("x", " y "))
    assert (expect.rcodes, expect.flags) == (("NXDOMAIN", "REFUSED"), ("AD",))


@pytest.mark.parametrize(
    ("url", "in_full"),
    [
        ("ICMP://Host.Example/", "icmp://host.example"),
        ("icmp://[2001:DB8::1]#top", "icmp://[2001:db8::1]"),
        ("dns://192.0.2.53/Example.COM.", "dns://192.0.2.53/example.com?type=A"),
        ("dns+tcp://Ns.Example:5353/.?TYPE=ns", "dns+tcp://ns.example:5353/.?type=NS"),
        ("dns://[::1]/version.bind?class=ch&type=TYPE16", "dns://[::1]/version.bind?type=TXT&class=CH"),
        ("dns://a/0/25.2.0.192.in-addr.arpa?type=TYPE65280", "dns://a/0/25.2.0.192.in-addr.arpa?type=TYPE65280"),
        ("dns://a/_25._tcp.a%25b?type=TLSA", "dns://a/_25._tcp.a%25b?type=TLSA"),
    ],
)
def test_urls_of_other_schemes(url, in_full, target):
    """They have one form, which is the target's id too: what a question asks for is no secret."""
    found = target(f"'{url}'")
    assert (found.id, found.url, found.shown_url) == (in_full, in_full, in_full)


def test_secrets_that_are_not_opened(load_text, monkeypatch):
    """What an unknown URL may have is not told then."""
    text = "targets: [{id: a, url: {env: U}, count: 3, method: GET, expect: {loss: 0, answer: {env: U}}}]\n"
    assert len(load_text(text, secrets="skip").targets) == 1


@pytest.mark.parametrize(
    ("source", "ip"), [("192.0.2.7", "4"), ("2001:DB8::7", "6"), ("eth1", "auto"), ("enp3s0.100", "auto")]
)
def test_a_source_that_is_an_address(source, ip, target):
    """With an address as its source a target is measured by that version of IP; an interface may have both."""
    taken = target(f"{{url: http://a.example/, source: '{source}'}}")
    assert (taken.source, taken.ip) == (source.lower(), ip)


def test_a_source_for_all_targets(target, monkeypatch):
    """It may be a default, and differ from device to device."""
    monkeypatch.setenv("UPLINK", "wwan0")
    taken = target("{url: icmp://a.example}", "{source: {env: UPLINK}}")
    assert taken.source == "wwan0"
    assert repr(taken.source) == "'wwan0'"
