"""Configurations to try: good ones of every form, made by hypothesis, as what YAML would give for them."""

from hypothesis import strategies as st

PRINTABLE = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])
TEXT = st.text(PRINTABLE, max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
WORDS = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
HOSTS = st.one_of(WORDS, WORDS.map(lambda word: f"{word}.example"), st.ip_addresses(v=4).map(str))
URLS = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "https", "HTTPS"]),
    st.one_of(HOSTS, st.ip_addresses(v=6).map(lambda address: f"[{address}]")),
    st.sampled_from(["", ":8080"]),
    st.one_of(WORDS, WORDS.map(lambda word: f"é?page={word}&empty=&flag")),
)
STATUSES = st.lists(
    st.one_of(
        st.integers(100, 599),
        st.builds(lambda low, more: f"{low}-{min(low + more, 599)}", st.integers(100, 599), st.integers(0, 99)),
    ),
    min_size=1,
    max_size=5,
)
SIZES = st.one_of(st.integers(1 << 20, 1 << 30), st.sampled_from(["1MiB", "1.5MiB", "1GiB"]))
LABELS = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans()), max_size=3)
HEADERS = st.dictionaries(
    st.sampled_from(["Accept", "X-Note", "Host", "User-Agent"]),
    st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20),
    max_size=3,
)
OPTIONS = {
    "enabled": st.one_of(st.booleans(), st.sampled_from(["on", "off", "yes", "no"])),
    "labels": LABELS,
    "interval": st.one_of(
        st.integers(10, 604_800), st.floats(10, 1e6).map(lambda x: min(round(x, 6), 604_800.0)), st.just("1h")
    ),
    "timeout": st.one_of(st.integers(1, 10), st.sampled_from(["500ms", "1.5ms", "0.000001h", "9.999999s"])),
    "attempts": st.integers(1, 10),
    "source": st.sampled_from(["eth1", "wlan0.100", "enx-0_1"]),
    "ip": st.sampled_from(["auto", 4, "6"]),
    "resolver": st.one_of(st.ip_addresses().map(str), st.just("[::1]:5353")),
    "tls": st.fixed_dictionaries(
        {}, optional={"verify": st.booleans(), "server_name": HOSTS, "min_version": st.sampled_from([1.2, "1.3"])}
    ),
    "method": st.sampled_from(["GET", "HEAD", "POST", "PURGE"]),
    "headers": HEADERS,
    "body": TEXT,
    "redirects": st.integers(0, 100),
    "body_limit": SIZES,
    "expect": st.fixed_dictionaries({}, optional={"status": STATUSES}),
}
ANY_SCHEME = {
    name: OPTIONS[name] for name in ("enabled", "labels", "interval", "timeout", "attempts", "source", "ip", "resolver")
}
SERVERS = st.one_of(HOSTS, st.ip_addresses(v=6).map(lambda address: f"[{address}]"))
PATTERNS = st.one_of(st.just("^a{1,2}, b$"), st.lists(st.sampled_from(["x", r"\s+192\.", "[A-Z]"]), max_size=2))
ECHOES = st.fixed_dictionaries(
    {"url": SERVERS.map("icmp://{}".format)},
    optional={
        **ANY_SCHEME,
        "count": st.integers(1, 100),
        "size": st.integers(8, 65_507),
        "expect": st.fixed_dictionaries({}, optional={"loss": st.floats(0, 1).map(lambda loss: round(loss, 3))}),
    },
)
QUESTIONS = st.fixed_dictionaries(
    {
        "url": st.builds(
            "{}://{}{}/{}{}".format,
            st.sampled_from(["dns", "dns+tcp", "DNS"]),
            SERVERS,
            st.sampled_from(["", ":5353"]),
            HOSTS,
            st.sampled_from(["", "?type=mx", "?TYPE=TYPE65280&class=CH"]),
        )
    },
    optional={
        **ANY_SCHEME,
        "recursion": st.booleans(),
        "expect": st.fixed_dictionaries(
            {},
            optional={
                "rcodes": st.lists(st.sampled_from(["NOERROR", "nxdomain", "RCODE12"]), min_size=1, max_size=2),
                "flags": st.lists(st.sampled_from(["AA", "ad"]), max_size=2),
                **dict.fromkeys(("answer", "answer_not", "authority", "additional", "additional_not"), PATTERNS),
            },
        ),
    },
)
TARGETS = st.lists(
    st.one_of(
        URLS, st.fixed_dictionaries({"url": URLS}, optional={"id": TEXT.filter(bool), **OPTIONS}), ECHOES, QUESTIONS
    ),
    max_size=4,
    unique_by=lambda target: target if isinstance(target, str) else target.get("id", target["url"]),
)
CONFIGURATIONS = st.fixed_dictionaries(
    {
        "agent": st.fixed_dictionaries({"id": NAMES}),
        "location": st.fixed_dictionaries(
            {"id": NAMES},
            optional={
                "country": st.sampled_from(["NO", "TR"]),
                "city": TEXT,
                "latitude": st.floats(-90, 90),
                "longitude": st.integers(-180, 180),
                "labels": LABELS,
            },
        ),
        "kafka": st.fixed_dictionaries(
            {"bootstrap_servers": st.one_of(st.lists(HOSTS, min_size=1, max_size=3), HOSTS)},
            optional={
                "topic": NAMES.filter(lambda name: name not in (".", "..")),
                "tick": st.sampled_from(["10ms", 0.25, "1s"]),
                "properties": st.dictionaries(st.sampled_from(["client.rack", "debug"]), TEXT, max_size=2),
            },
        ),
        "targets": TARGETS,
    },
    optional={
        "state_directory": TEXT.map(lambda text: f"/{text}"),
        "spool": st.fixed_dictionaries(
            {}, optional={"durability": st.just("strict"), "max_size": SIZES, "min_free": SIZES}
        ),
        "status": st.fixed_dictionaries({"listen": st.sampled_from(["off", "[::1]:9469", "localhost:1"])}),
        "clock": st.fixed_dictionaries({"synchronized": st.sampled_from(["auto", "yes", "no"])}),
        "uplink": st.fixed_dictionaries({"references": st.lists(URLS, max_size=2)}),
        "workers": st.sampled_from([1, "auto", 256]),
        "defaults": st.fixed_dictionaries({}, optional=OPTIONS),
    },
)
