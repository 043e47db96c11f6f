"""Random nodes of every label with the edges among them: what every reducer has to beat at the same size."""

import torch

from kdzoo.graph.reducers import Graph, Reducer, budget, induced, shares


class RandomNodes(Reducer):
    """Keeps random nodes, as many of each label as its share asks for."""

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Choose, and cut the graph out."""
        chosen = []
        for label, count in shares(graph["label"], budget(graph, rate)).items():
            nodes = (graph["label"] == label).nonzero()[:, 0]
            chosen.append(nodes[torch.randperm(len(nodes))[:count].to(nodes.device)])
        return induced(graph, torch.cat(chosen).sort().values)
