"""Adaptive task vectors in the published setting (Kang et al. 2025): GPT-2 writes for Llama-3-8B.

The two sources differ, and the argument chooses one: released_code (default; vectors at every position) or paper
(vectors at the last token). Neither weights nor data come with tvjax: --config.target.path=LLAMA
--config.generator.path=GPT2 --config.data.path=TASKS, a folder with a NAME.json list of {"input", "output"} for each
name in config.tasks. Ours are the wording of the templates, one answer prefix in place of three, the best checkpoint by
the dev split, and the mean over tasks (theirs is over five categories).
"""

import atv_text
from ml_collections import ConfigDict

from tvjax.errors import reject

KNOWLEDGE = ("commonsense_qa", "openbookqa", "hellaswag", "boolq")
REASONING = ("bbh_boolean_expressions", "bbh_date_understanding", "bbh_reasoning_about_colored_objects")
REASONING += ("bbh_temporal_sequences", "arc_challenge")
MATH = ("math_qa", "mmlu_pro_math")
SAFETY = ("crows_pairs", "bbq_age", "ethics_justice", "ethics_commonsense")
LANGUAGE = ("superglue_rte", "superglue_wic", "glue_qnli", "glue_sst2", "glue_mnli")
UNSEEN = ("glue_cola", "bbq_religion", "deepmind", "mmlu_high_school_psychology", "bbh_logical_deduction_five_objects")
VARIANTS = {"released_code": "atv_all", "paper": "atv_last"}


def get_config(variant: str = "released_code") -> ConfigDict:
    if variant not in VARIANTS:
        raise reject("--config argument", variant, ", ".join(VARIANTS))
    config = atv_text.get_config("small")

    config.target.path = "Meta-Llama-3-8B"  # a Hugging Face folder
    config.target.dtype = "float16"  # as theirs; in bfloat16 vectors of lambda 0.001 are rounded away
    config.target.remat = "full"
    config.generator.path = "gpt2"  # a Hugging Face folder; float32
    config.generator.template = ("Q: ", " \n A:", "\n\n")
    config.training = ConfigDict()  # nothing is trained for want of a path

    config.data.path = "tasks"  # a folder of NAME.json
    config.tasks.seen = KNOWLEDGE + REASONING + MATH + SAFETY + LANGUAGE
    config.tasks.ambiguous = ()
    config.tasks.unseen = UNSEEN
    config.templates = (  # three, as theirs; their wording is ours
        ("Q: ", "\nA:", "\n\n"),
        ("Question: ", "\nAnswer:", "\n\n"),
        ("Input: ", "\nOutput:", "\n\n"),
    )
    config.methods = ("zero_shot", "few_shot", VARIANTS[variant])

    config.atv.scale = (0.001,)
    config.atv.start = "uniform"
    config.atv.dropout = 0.1
    config.vectors.memory = 8.0

    config.atv.rate = 5e-4
    config.train.batch = 1
    config.train.examples = 90
    config.train.shuffled = False
    config.train.steps = 27_000  # 15 epochs of 20 tasks with 90 examples each
    config.train.log_every = 50
    config.train.evaluate_every = 900
    config.train.checkpoint_every = 900
    config.train.keep_best = "accuracy_first"
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "constant"
    config.optimizer.l2 = 1e-5
    config.optimizer.clip_norm = 0.0

    config.evaluation.test = 100
    config.sensitivity.method = VARIANTS[variant]
    config.sensitivity.scales = ()
    config.sensitivity.layers = ()
    config.sensitivity.examples = ()
    return config
