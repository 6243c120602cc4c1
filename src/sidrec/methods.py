"""The one table of methods: stage -> {name: "module:Class"}, and its look-up.

Other packages add methods through the entry-point groups `sidrec.<stage>`.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from sidrec.errors import ConfigError

METHODS: dict[str, dict[str, str]] = {
    "embeddings": {
        "lsa": "sidrec.embeddings.lsa:Lsa",
        "sentence": "sidrec.embeddings.sentence:SentenceEncoder",
        "precomputed": "sidrec.embeddings.precomputed:Precomputed",
        "collaborative": "sidrec.embeddings.collaborative:Collaborative",
        "fusion": "sidrec.embeddings.fusion:Fusion",
        "joint": "sidrec.embeddings.joint:Joint",
    },
    "tokenizers": {
        "residual_kmeans": "sidrec.tokenizers.residual_kmeans:ResidualKMeans",
        "rqvae": "sidrec.tokenizers.rqvae:RqVae",
        "coba_rqvae": "sidrec.tokenizers.coba_rqvae:CobaRqVae",
        "plum_rqvae": "sidrec.tokenizers.plum_rqvae:PlumRqVae",
        "letter": "sidrec.tokenizers.letter:Letter",
        "balanced_kmeans": "sidrec.tokenizers.balanced_kmeans:BalancedKMeans",
        "opq": "sidrec.tokenizers.opq:Opq",
        "sarq": "sidrec.tokenizers.sarq:Sarq",
        "acrq": "sidrec.tokenizers.acrq:Acrq",
        "fsq": "sidrec.tokenizers.fsq:Fsq",
        "barge": "sidrec.tokenizers.barge:BargeTokenizer",
    },
    "collisions": {
        "keep": "sidrec.tokenizers.collisions:keep",
        "counter": "sidrec.tokenizers.collisions:counter",
        "sinkhorn": "sidrec.tokenizers.collisions:sinkhorn",
        "reassign": "sidrec.tokenizers.collisions:reassign",
        "capacity": "sidrec.tokenizers.collisions:capacity",
    },
    "generators": {
        "causal": "sidrec.generators.causal:Causal",
        "tiger": "sidrec.generators.tiger:Tiger",
        "barge": "sidrec.generators.barge:Barge",
        "parallel": "sidrec.generators.parallel:Parallel",
        "s2gr": "sidrec.generators.s2gr:S2gr",
        "s2gr_tiger": "sidrec.generators.s2gr_tiger:S2grTiger",
        "liger": "sidrec.generators.liger:Liger",
        "cobra": "sidrec.generators.cobra:Cobra",
        "joint": "sidrec.generators.joint:Joint",
    },
    "scorers": {
        "popularity": "sidrec.scorers.popularity:Popularity",
        "transition_graph": "sidrec.scorers.transition_graph:TransitionGraph",
        "sasrec": "sidrec.scorers.sasrec:SASRec",
        "dense": "sidrec.scorers.dense:Dense",
        "lite": "sidrec.scorers.lite:Lite",
        "content_knn": "sidrec.scorers.content_knn:ContentKnn",
        "unicorn": "sidrec.scorers.unicorn:Unicorn",
    },
    "understanding": {
        "catalogue": "sidrec.retrieval.search.understanding.understanding:QueryUnderstanding",
    },
    "searchers": {
        "bm25": "sidrec.retrieval.search.bm25:Bm25",
        "dual_tower": "sidrec.retrieval.search.dual_tower:DualTower",
        "generative": "sidrec.retrieval.search.generative:Generative",
    },
    "retrievers": {
        "mixture": "sidrec.retrieval.mixture:Mixture",
        "feedback": "sidrec.retrieval.feedback:Feedback",
        "dense_ranking": "sidrec.retrieval.dense_ranking:DenseRanking",
        "beam_fusion": "sidrec.retrieval.beam_fusion:BeamFusion",
    },
    "objectives": {
        "sft": "sidrec.alignment.objectives.sft:Sft",
        "dpo": "sidrec.alignment.objectives.dpo:Dpo",
        "s_dpo": "sidrec.alignment.objectives.s_dpo:SDpo",
        "simpo": "sidrec.alignment.objectives.simpo:SimPo",
        "orpo": "sidrec.alignment.objectives.orpo:Orpo",
        "rad_dpo": "sidrec.alignment.objectives.rad_dpo:RadDpo",
        "grpo": "sidrec.alignment.objectives.grpo:Grpo",
        "ecpo": "sidrec.alignment.objectives.ecpo:Ecpo",
        "gbpo": "sidrec.alignment.objectives.gbpo:Gbpo",
        "adagrpo": "sidrec.alignment.objectives.adagrpo:AdaGrpo",
        "a2po": "sidrec.alignment.objectives.a2po:A2po",
        "ppo": "sidrec.alignment.objectives.ppo:Ppo",
    },
    "rewards": {
        "exact": "sidrec.alignment.rewards.exact:Exact",
        "prefix": "sidrec.alignment.rewards.prefix:Prefix",
        "rank_aware": "sidrec.alignment.rewards.rank_aware:RankAware",
        "validity": "sidrec.alignment.rewards.validity:Validity",
        "judge": "sidrec.alignment.judge.judge:Judge",
        "ranker": "sidrec.alignment.rewards.ranker:Ranker",
        "feedback": "sidrec.alignment.rewards.feedback:Feedback",
        "preference_model": "sidrec.alignment.rewards.preference_model:PreferenceModel",
    },
}


def names(stage: str) -> list[str]:
    """Every method of a stage, built-in first, then those of installed packages."""
    table = _stage_table(stage)
    return [*table, *(e.name for e in entry_points(group=f"sidrec.{stage}") if e.name not in table)]


def resolve(stage: str, name: str) -> Any:
    """The class (or function) called `name` in `stage`. ConfigError names the nearest."""
    target = _stage_table(stage).get(name)
    if target is None:
        for entry in entry_points(group=f"sidrec.{stage}"):
            if entry.name == name:
                return entry.load()
        near = difflib.get_close_matches(name, names(stage), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no method {name!r} in {stage}: have {names(stage)}{hint}")
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _stage_table(stage: str) -> dict[str, str]:
    if stage not in METHODS:
        raise ConfigError(f"no stage {stage!r}: have {list(METHODS)}")
    return METHODS[stage]
