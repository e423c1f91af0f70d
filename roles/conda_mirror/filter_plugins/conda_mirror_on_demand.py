"""What Nginx is told of packages and installers on demand: which paths may be asked for, and where they are to be had.

Sources: CEP 26 (names of packages and their files); RFC 9110, 10.2.2 (redirects); the documentation of Nginx's modules
`core` (resolver) and `proxy` (proxy_pass with variables).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

# Each upstream, and each redirect, is one of ten steps that Nginx takes at most for one request.
MOST_UPSTREAMS = 4
# A URL that stands in Nginx's files as it is, without a password.
BASE = re.compile(r"https?://(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9_.~+@%-]+)*/?")
HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
FOLDER = re.compile(r"(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+/?")
# The folder of the cache in conda_mirror_cache_dir.
CACHE = "lanmirror-conda"
FIRST_PORT, LAST_PORT = 1024, 65535
# The texts that Ansible's filter `bool` takes for true.
TRUE = {"true", "t", "yes", "y", "on", "1"}
ENDING = r"\.(?:conda|tar\.bz2)"
PACKAGE = rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}-[A-Za-z0-9_.!+]{{1,64}}-[A-Za-z0-9_.+]{{1,64}}{ENDING}"
# The index of shards is none of them: clients do without where it is not there, and an upstream's would be a list of
# files that this site has not.
INDEX = r"(?:(?:current_)?repodata|repodata_from_packages|run_exports)\.json(?:\.zst|\.bz2|\.gz)?"
# An installer, as the engine takes its name from a page (lanmirror_sync/listing.py), before its suffix.
STEM = "[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}"
# One that changes under its name.
LATEST = rf"(?=[^/]*latest){STEM}"
NOTHING = "(?!)"
CHANNELS = ("pkgs", "cloud")
SUFFIX = re.compile(r"[A-Za-z0-9._+-]+")
SHARDS = r"(?:repodata_shards|[0-9a-f]{64})\.msgpack\.zst"


def _either(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(re.escape(text) for text in dict.fromkeys(texts))})"


def _packages(subdirs: Sequence[str]) -> str:
    return f"/{_either(subdirs)}/{PACKAGE}"


def _indexes(subdirs: Sequence[str]) -> str:
    channels = _either(subdir.rpartition("/")[0] for subdir in subdirs)
    return rf"/(?:{_either(subdirs)}/{INDEX}|{channels}/channeldata\.json)"


def _installers(dists: Iterable[str], suffixes: Iterable[str], stem: str = STEM) -> str:
    """Return the expression of installers in these folders; one that matches nothing where there are none."""
    folders = [dist for dist in dists if dist not in CHANNELS]
    # With any other sign no name on a page ends.
    ends = [suffix for suffix in suffixes if SUFFIX.fullmatch(suffix)]
    return f"/{_either(folders)}/{stem}{_either(ends)}" if folders and ends else NOTHING


def _served(subdirs: Sequence[str]) -> str:
    return f"{_indexes(subdirs)}|/{_either(subdirs)}/(?:{PACKAGE}|{SHARDS})"


def patterns(
    subdirs: Sequence[str], dists: Sequence[str], suffixes: Sequence[str], ruled: Sequence[str] = ()
) -> dict[str, str]:
    """Return the regular expressions of the paths that may be fetched, from the first slash to the end.

    Those of `served` are all packages, indexes and installers, shards (CEP 16) among them; those of `latest` are
    installers that change under their names.

    Args:
        subdirs: by their paths below the mirror, such as `cloud/conda-forge/noarch`.
        dists: the folders of installers.
        suffixes: with which their names end.
        ruled: the subdirs that have rules: an index of the upstream's would name what these hide.
    """
    installers = _installers(dists, suffixes)
    mixed = {subdir.rpartition("/")[0] for subdir in ruled}
    free = [subdir for subdir in subdirs if subdir.rpartition("/")[0] not in mixed]
    return {
        "packages": _packages(subdirs),
        "indexes": _indexes(free) if free else NOTHING,
        "installers": installers,
        "latest": _installers(dists, suffixes, LATEST),
        "served": f"(?:{_served(subdirs)}|{installers})",
    }


def excluded(names: Iterable[str]) -> str:
    """Return the regular expression of the ends of paths of packages that are not wanted; "" for none.

    Args:
        names: of packages, or patterns of them as in `fnmatch`, which the engine takes as well.
    """
    # Without the end of the text, and with stars that match no slashes.
    parts = [re.sub(r"\\[zZ]$", "", fnmatch.translate(name)).replace(".*", "[^/]*") for name in names]
    return f"/(?:{'|'.join(parts)})-[^/-]+-[^/-]+{ENDING}$" if parts else ""


def _bases(value: Any) -> list[str]:
    """Return the URLs of a setting of `conda_mirror_upstream`, which is one or a list, without slashes at the end."""
    urls = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [str(url).rstrip("/") for url in urls if url]


def _sources(upstream: Mapping[str, Any], key: str) -> tuple[list[str], list[str]]:
    """Return where packages are to be had, and where indexes are, in the order of the engine."""
    index = upstream.get("index")
    packages, indexes = _bases(upstream.get(key)), _bases(index.get(key) if isinstance(index, Mapping) else None)
    return list(dict.fromkeys([*packages, *indexes])), indexes or packages


def _place(base: str, hosts: Sequence[str]) -> dict[str, Any]:
    """Return an upstream, with the regular expression of the URLs that it may redirect to, and where these begin."""
    url = urlsplit(base)
    # From https no way leads to http.
    schemes = ["https"] if url.scheme == "https" else ["http", "https"]
    origin = f"{url.scheme}://{url.netloc}"
    return {
        "host": url.netloc,
        "path": url.path,
        "origin": origin,
        "outside": _outside(origin),
        "redirect": f"^{_either(schemes)}://{_either(hosts)}/[!$-~]*$",
        "origins": [origin, *(f"{scheme}://{host}" for scheme in schemes for host in hosts)],
    }


def _outside(origin: str) -> str:
    """Return the name that HAProxy has for a server; it takes no slashes and no brackets."""
    return re.sub(r"//|[\[\]]", "", origin.lower())


def outsides(ways: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each server that may be asked: `name`, `host` (without brackets), `port`, `is_named` and `tls`.

    Args:
        ways: see `ways`.
    """
    found = {}
    for origin in (origin for way in ways for place in way["places"] for origin in place["origins"]):
        url = urlsplit(origin)
        try:
            is_named = not ip_address(url.hostname or "")
        except ValueError:
            is_named = True
        tls = url.scheme == "https"
        port = url.port or (443 if tls else 80)
        name = _outside(origin)
        found[name] = {"name": name, "host": url.hostname, "port": port, "is_named": is_named, "tls": tls}
    return [*found.values()]


def ways(
    upstream: Mapping[str, Any],
    subdirs: Sequence[str],
    hosts: Sequence[str],
    dists: Sequence[str],
    suffixes: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the ways to the upstreams: `name`, `match`, a list of regular expressions of paths, and `places`.

    Each expression has a group, the path below the URL of a place.

    Args:
        upstream: conda_mirror_upstream.
        subdirs: see `patterns`.
        hosts: to which an upstream may redirect, beside the upstreams themselves.
        dists: see `patterns`.
        suffixes: likewise.
    """
    found = []
    installers = _installers(dists, suffixes)
    sources = {key: _sources(upstream, key) for key in ("repo", "cloud")}
    known = [urlsplit(base).netloc for both in sources.values() for bases in both for base in bases]
    for key, kind, lead in (("repo", "pkgs/", ""), ("cloud", "cloud/", "/cloud")):
        ours = [subdir if not lead else subdir.removeprefix(kind) for subdir in subdirs if subdir.startswith(kind)]
        packages, indexes = sources[key]
        files = [_packages(ours)] if ours else []
        # Their pages are indexes, which nobody fetches on demand.
        files += [installers] if not lead and installers != NOTHING else []
        of_index = [_indexes(ours)] if ours else []
        both = [(key, [*files, *of_index], packages)]
        if indexes != packages:
            both = [(key, files, packages), (f"{key}_indexes", of_index, indexes)]
        found += [
            {
                "name": name,
                "match": [f"^{lead}(?<conda_mirror_file>{path})$" for path in matching],
                "places": [_place(base, [*known, *hosts]) for base in bases],
            }
            for name, matching, bases in both
            if matching
        ]
    return found


def resolvers(facts: Mapping[str, Any]) -> list[str]:
    """Return the machine's name servers as Nginx takes them: an IPv6 address in brackets, and none with a zone."""
    found = []
    for text in facts.get("dns", {}).get("nameservers", []):
        try:
            address = ip_address(str(text))
        except ValueError:
            continue
        if not isinstance(address, IPv6Address):
            found.append(str(address))
        elif address.scope_id is None:
            found.append(f"[{address}]")
    return found


def problems(given: Mapping[str, Any]) -> list[str]:
    """Return why Nginx could not fetch on demand; each with its variable, its value and what is allowed.

    What is wrong without on demand as well is not among them, see conda_mirror_checks.

    Args:
        given: all public variables of the role, as they were set.
    """
    port, limit = str(given["conda_mirror_on_demand_port"]), str(given["conda_mirror_cache_max_gib"])
    folder, hosts = str(given["conda_mirror_cache_dir"]), given["conda_mirror_upstream_hosts"]
    mirror = str(given["conda_mirror_working_dir"])
    found = []
    if not re.fullmatch(r"[0-9]{4,5}", port) or not FIRST_PORT <= int(port) <= LAST_PORT:
        found.append(
            f"conda_mirror_on_demand_port is '{port}'; allowed: a whole number from {FIRST_PORT} to {LAST_PORT}"
        )
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", limit) or float(limit) < 1:
        found.append(f"conda_mirror_cache_max_gib is '{limit}'; allowed: a number of GiB, 1 or more")
    if not FOLDER.fullmatch(folder) or f"{folder.rstrip('/')}/".startswith(f"{mirror.rstrip('/')}/"):
        found.append(
            f"conda_mirror_cache_dir is '{folder}'; allowed: an absolute path of letters, digits and . _ + - /, "
            f"outside of conda_mirror_working_dir ({mirror}), for example /var/cache"
        )
    elif f"{mirror.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/{CACHE}/"):
        found.append(
            f"conda_mirror_working_dir is '{mirror}'; allowed: a folder outside of {folder.rstrip('/')}/{CACHE}, "
            "which is the cache of conda_mirror_cache_dir"
        )
    if isinstance(hosts, str) or not isinstance(hosts, Sequence) or not all(HOST.fullmatch(str(h)) for h in hosts):
        found.append(
            f"conda_mirror_upstream_hosts is '{hosts}'; allowed: a list of host names, for example "
            "[files.example.org, files.example.org:8443]; an INI inventory has ['files.example.org']"
        )
    if str(given["conda_mirror_on_demand"]).strip().lower() not in TRUE:
        return found
    if given["conda_mirror_http_proxy"]:
        proxy = re.sub(r"^(\w+://)?.*@", r"\1***@", str(given["conda_mirror_http_proxy"]))
        found.append(
            f"conda_mirror_http_proxy is '{proxy}' and conda_mirror_on_demand is true; what comes on demand goes "
            "through no proxy: leave the proxy out, or set conda_mirror_on_demand to false, and the sync alone fetches"
        )
    return [*found, *_of_upstreams(given["conda_mirror_upstream"])]


def _of_upstreams(upstream: Any) -> Iterator[str]:
    """Yield what is wrong with conda_mirror_upstream for Nginx alone."""
    for key in ("repo", "cloud") if isinstance(upstream, Mapping) else ():
        bases, _ = _sources(upstream, key)
        for base in bases:
            if not BASE.fullmatch(base):
                yield (
                    f"conda_mirror_upstream.{key} has '{re.sub('//.*@', '//***@', base)}'; allowed with "
                    "conda_mirror_on_demand: a URL of letters, digits and . _ ~ + @ % - /, without a password"
                )
        if len(bases) > MOST_UPSTREAMS:
            yield (
                f"conda_mirror_upstream.{key} has {len(bases)} URLs, with that of index; allowed with "
                f"conda_mirror_on_demand: {MOST_UPSTREAMS} at most"
            )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "conda_mirror_excluded": excluded,
            "conda_mirror_on_demand_problems": problems,
            "conda_mirror_outsides": outsides,
            "conda_mirror_patterns": patterns,
            "conda_mirror_resolvers": resolvers,
            "conda_mirror_ways": ways,
        }
