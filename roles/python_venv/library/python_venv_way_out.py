#!/usr/bin/python
"""Say whether a server reaches what it needs on the outside, by one quick request each."""

from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils import lanmirror_way_out as out
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: python_venv_way_out
short_description: Check the way from a server to its package index and its upstreams, and change nothing
description:
  - Goes the way that pip will go; see the module python_venv.
  - Asks the index only while the venv is not there, and stops if it is not reached.
  - Stops at an upstream only while the venv is not there, and where a setting is wrong for certain (TLS, the proxy).
    Otherwise it warns.
options:
  folder:
    description: Where the venv is or will be.
    type: path
    required: true
  requirements:
    description: The pins of the venv; the index must have a page for the first of them.
    type: str
    required: true
  role:
    description: The role that needs it, whose variables the messages name.
    type: str
    required: true
  index_url:
    description: URL of a simple index. Empty for that of the machine's pip settings, or pip's own.
    type: str
    default: ""
  default_index_url:
    description: URL of pip's own index. Empty where nobody knows it; then it is not asked.
    type: str
    default: ""
  http_proxy:
    description: URL of a proxy.
    type: str
    default: ""
  ca_bundle:
    description: Path of a bundle of authorities on this server.
    type: str
    default: ""
  ca_bundle_content:
    description: What that file holds on the controller, in base64, for a server that has no such file.
    type: str
    default: ""
  upstreams:
    description:
      - What else the role needs, each with C(what), C(variable) and C(urls), one of which must answer.
      - An empty URL stands for pip's own index.
    type: list
    elements: dict
    default: []
author:
  - lanmirror
"""

EXAMPLES = """
- name: Check the way out
  python_venv_way_out:
    folder: /opt/tool/py3.11-0123456789ab
    requirements: "tool==1.0"
    role: tool
"""

RETURN = """
asked:
  description: What was asked.
  type: list
  returned: always
"""

SPEC = {
    "folder": {"type": "path", "required": True},
    "requirements": {"type": "str", "required": True},
    "role": {"type": "str", "required": True},
    "index_url": {"type": "str", "default": "", "no_log": True},
    "default_index_url": {"type": "str", "default": ""},
    "http_proxy": {"type": "str", "default": "", "no_log": True},
    "ca_bundle": {"type": "str", "default": ""},
    "ca_bundle_content": {"type": "str", "default": ""},
    "upstreams": {"type": "list", "elements": "dict", "default": []},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    values, role = module.params, module.params["role"]
    try:
        authorities = out.bundle_text(values["ca_bundle"], values["ca_bundle_content"])
    except out.WayError as error:
        module.fail_json(msg=f"lanmirror_ca_bundle (or {role}_ca_bundle): {error}")
    complete = out.is_complete(Path(values["folder"]))
    # The index is that of pip, with all that the machine's own settings say; the upstreams are asked by a service.
    pip = out.way(values, out.machine_settings(os.environ))
    service = out.Way(proxy=values["http_proxy"], service=True)
    targets = []
    index = pip.index_url or values["default_index_url"]
    if index and not complete:
        targets.append((out.index_target(index, values["requirements"], role), pip))
    for upstream in values["upstreams"]:
        urls = tuple(filter(None, (url or values["default_index_url"] for url in upstream["urls"])))
        if urls:
            targets.append((out.Target(upstream["what"], upstream["variable"], urls), service))
    bundle = out.bundle_name(values["ca_bundle"], values["ca_bundle_content"])
    for target, problem in out.find_problems(targets, authorities, role, bundle):
        # pip needs its index now. An upstream may be away for an hour; who has a wrong setting has no way at all.
        if target.project or (problem.settings and not complete):
            module.fail_json(msg=problem.text)
        module.warn(problem.text)
    module.exit_json(changed=False, asked=[target.what for target, _ in targets])


if __name__ == "__main__":
    main()
