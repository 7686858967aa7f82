"""Overrides that lay a run out over ranks, by the names that the tests give their layouts."""

TP2 = ["parallel.tensor_model_parallel_size=2"]
TP2_SP = [*TP2, "parallel.sequence_parallel=true"]
PP2 = ["parallel.pipeline_model_parallel_size=2"]
VPP = [*PP2, "parallel.virtual_pipeline_model_parallel_size=2"]
CP2 = ["parallel.context_parallel_size=2"]
ZERO2 = ["parallel.zero_stage=2"]
ZERO3 = ["parallel.zero_stage=3"]
OVERLAP = ["parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"]
