"""Extensions of ours to the xDS protocol, for when both halves are ours; others pass them over.

A client names what it can do in `node.client_features`.
"""

from __future__ import annotations

from typing import Final

ON_DEMAND_FEATURE: Final = "nodeagent.on-demand"
"""The client asks for listeners, clusters and virtual hosts by name."""
PEERS_FEATURE: Final = "nodeagent.peers"
"""The client is told by L4 policies which peers need certificates, and asks tunnels for them: its listeners do not."""
PARTS_FEATURE: Final = "nodeagent.parts"
"""The client takes an answer of many resources in several responses, each while the next is being made. In all but
the last `control_plane.identifier` is MORE: until then it does not have all that there is."""
MORE: Final = "nodeagent: more follows"
