"""lanmirror's plugin for devpi-server: its pages are rich, and its upstreams may be slow, flat or lying.

devpi loads it by its entry point, from the folder `src` of the venv (PYTHONPATH). What it stores stands in devpi's own
database, so replicas, backups and upgrades carry it.

    plugin.py    the hooks of devpi: options, the tween
    replace.py   puts our functions in the place of devpi's, where devpi has no hook; refuses another devpi
    tween.py     the answers to Nginx: 424, compression, headers
    page.py      the page of a project as an upstream tells it, and how it is stored; pure
    links.py     such a page, and devpi's own links and entries in its place
    mirror.py    the page of a project in a mirror: known, or asked for
    uploaded.py  the page of a project in a stage
    bases.py     the indexes that count for a project of a stage
    view.py      the page of a project as clients get it
    kept.py      such pages in memory
    times.py     when pages were confirmed by their upstreams
    outside.py   the HTTP client for upstreams, which goes nowhere inside; the setting `file_hosts`
    entries.py   devpi's entries of files that nobody has fetched: made up from the page
    sources.py   the bytes of a file: checked, and going on where an upstream broke off
    near.py      the bytes of a file from the places of the setting `files_from`
    fetch.py     downloads: one for each file at a time
    answers.py   the answers to requests for a file: stored, as it comes, or a part of it
    keep.py      how a file, and the metadata of a wheel, is got and stored
    files.py     who gets which answer: devpi's views of files, and the contract with Nginx
    passwords.py how many passwords are checked at a time, and who may upload
    policy.py    which files are shown, by rules; pure
    coming.py    the settings of a mirror with such rules: `min_age_days`, `block`, `allow`
    held.py      stored files that the rules hide, set aside where Nginx does not find them
    own_names.py uploads of a name that a mirror below the index has
    malware.py   the list of known malware; pure
    osv.py       that list in the form of OSV's API, for uv's own check
    places.py    several upstreams: `fallback_urls` and `files_from`, and the pauses of hosts that fail
    flat.py      the setting `flat`: an upstream of one page
    setting.py   makes such settings
    told.py      which upstreams answer, for the watchdog

Made for the version of devpi-server that requirements.txt pins.
"""
