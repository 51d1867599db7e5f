"""A workflow of workflows whose building takes a time in proportion to their number."""

from __future__ import annotations

from nipype.pipeline.engine import Workflow
from nipype.pipeline.engine.base import EngineBase


class LargeWorkflow(Workflow):
    """nipype's workflow, without its search through all nested ones for each node that is connected: at a
    thousand subjects that search is most of the time.
    """

    def _has_node(self, wanted_node: EngineBase) -> bool:
        # A node of a nested workflow carries the names of those that hold it.
        nested = wanted_node._hierarchy not in (None, self.name)
        return nested or wanted_node in self._nodes_cache

    def _check_nodes(self, nodes: set[EngineBase]) -> None:
        taken = {node.name for node in self._nodes_cache if node._hierarchy in (None, self.name)}
        for node in nodes:
            if node.name in taken:
                raise OSError(f'Duplicate node name "{node.name}" found.')
            taken.add(node.name)
