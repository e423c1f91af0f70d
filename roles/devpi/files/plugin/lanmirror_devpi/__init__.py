"""lanmirror's plugin for devpi-server: its pages are rich, and its upstreams may be slow, flat or lying.

devpi loads it by its entry point, from the folder `src` of the venv (PYTHONPATH). What it stores stands in devpi's own
database, so replicas, backups and upgrades carry it.

    plugin.py    the hooks of devpi: options, the setting `flat` of an index, the tween
    replace.py   puts our functions in the place of devpi's, where devpi has no hook; refuses another devpi
    tween.py     the answers to Nginx: 424, compression, headers
    page.py      what an upstream's page tells, and how it is stored
    mirror.py    asks an upstream for the page of a project
    flat.py      an upstream of one page
    outside.py   the HTTP client for upstreams, which goes nowhere inside; the setting `file_hosts`
    told.py      which upstreams answer, for the watchdog

Made for the version of devpi-server that requirements.txt pins.
"""
