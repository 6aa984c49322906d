"""What a user may rely on: each promise with the tests that hold it up, and each fault that was provoked.

A test is named by its file below `tests`, or by file and function; a file stands for all of its tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, and the tests that must pass for it to be kept."""

    text: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong or is done wrong, what must happen then, and the tests that do it."""

    text: str
    outcome: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "Functions run once more in the backward pass and no more than that; inverting everything "
        "costs 4/3 of "
        "ordinary training's FLOPs",
        (
            "engine/test_chain.py::test_every_function_is_evaluated_exactly_twice_a_step",
            "engine/test_chain.py::test_flops_are_four_thirds_of_plain_autograd",
            "trust/test_determinism.py::test_the_comparison_costs_no_evaluation_and_no_flop",
        ),
    ),
    Promise(
        "The bytes held after the forward pass do not grow with depth",
        (
            "engine/test_chain.py::test_held_bytes_do_not_grow_with_depth",
            "engine/test_chain.py::test_no_more_than_the_streams_is_held_beyond_the_outputs",
        ),
    ),
    Promise(
        "Memory goes by reference counts, with the garbage collector off: after backward, with the loss, and "
        "after an exception",
        ("engine/test_memory.py",),
    ),
    Promise(
        "Gradients equal plain autograd's, to 1e-12 in float64, on random graphs and under any decisions",
        ("engine/test_random_graphs.py", "engine/test_gradients.py::test_the_reference_algorithm_agrees"),
    ),
    Promise(
        "BatchNorm's statistics and its count move once a step, bitwise as in plain autograd",
        (
            "engine/test_buffers.py::test_batchnorm_counts_one_step",
            "engine/test_buffers.py::test_batchnorm_in_boundaries_counts_one_step",
            "engine/test_buffers.py::test_a_batchnorm_shared_by_two_nodes_counts_two",
            "engine/test_buffers.py::test_batchnorm_momentum_none_and_without_tracking",
        ),
    ),
    Promise(
        "Modules that change buffers in their forward (spectral norm) replay from the earlier buffers",
        (
            "engine/test_buffers.py::test_spectral_norm_replays_from_the_earlier_vectors",
            "engine/test_buffers.py::test_spectral_norm_with_two_forwards_before_one_backward",
            ""
            "engine/test_buffers.py::test_a_user_batchnorm_that_reads_its_statistics_replays_from_the_earlier_ones",
        ),
    ),
    Promise(
        "Dropout drops the same elements on replay, and the random stream goes on as in plain autograd",
        ("engine/test_random_numbers.py",),
    ),
    Promise(
        "Autocast (bfloat16): functions see the same precision on replay; from stored inputs the "
        "gradient is plain "
        "autocast's to the bit",
        ("trust/test_autocast.py", "engine/test_module.py::test_bf16_autocast_is_the_same_on_replay"),
    ),
    Promise(
        "An input without a gradient still gives parameters theirs",
        (
            "engine/test_gradients.py::test_an_input_without_gradient_still_gives_parameters_theirs",
            "engine/test_gradients.py::test_a_net_traced_with_gradient_runs_without_and_the_other_way_round",
        ),
    ),
    Promise(
        "An input that is a leaf gets its gradient, once",
        ("engine/test_gradients.py::test_a_leaf_input_gets_its_gradient_once",),
    ),
    Promise(
        "Parameters may be frozen, wholly or partly, anywhere",
        (
            "engine/test_gradients.py::test_frozen_parameters_at_any_place",
            "engine/test_gradients.py::test_parameters_frozen_after_the_trace",
        ),
    ),
    Promise(
        "One module may serve in several nodes, and parameters may be tied",
        (
            "engine/test_gradients.py::test_one_function_in_several_nodes",
            "engine/test_gradients.py::test_tied_parameters_of_two_modules",
        ),
    ),
    Promise(
        "Further inputs (masks, conditions, keyword arguments), with and without gradient",
        (
            "engine/test_gradients.py::test_a_mask_a_condition_a_number_and_keyword_arguments",
            "engine/test_gradients.py::test_coupling_modules_pass_keyword_arguments_on",
            "engine/test_gradients.py::test_an_integer_input_read_by_an_embedding",
        ),
    ),
    Promise(
        "Skips around, into and out of a reversible stretch, and any fan-out",
        (
            "engine/test_gradients.py::test_skips_into_out_of_and_around_a_reversible_stretch",
            "engine/test_gradients.py::test_a_value_read_by_several_nodes",
        ),
    ),
    Promise(
        "A ReLU may work in place after a coupling; a stored value that is edited in place is an error",
        (
            "engine/test_gradients.py::test_in_place_relu_after_a_coupling",
            "engine/test_edits.py::test_an_edit_of_the_output_is_refused_by_name",
        ),
    ),
    Promise(
        "`torch.autograd.grad`, also for some parameters only",
        (
            "engine/test_repeated_gradients.py::test_grad_for_a_subset",
            "engine/test_repeated_gradients.py::test_backward_with_inputs_leaves_other_gradients_alone",
        ),
    ),
    Promise(
        "Backward twice with `retain_graph=True`",
        ("engine/test_repeated_gradients.py::test_backward_twice_with_retain_graph",),
    ),
    Promise(
        "Double backward: Hessian-vector products and gradient penalties",
        (
            "engine/test_repeated_gradients.py::test_hessian_vector_products",
            "engine/test_repeated_gradients.py::test_gradient_penalty_added_to_the_loss",
            "engine/test_repeated_gradients.py::test_gradcheck_and_gradgradcheck",
        ),
    ),
    Promise(
        "Backward and parameter hooks are called once, with the plain net's gradients; forward "
        "hooks once more at "
        "a replay",
        (
            "trust/test_hooks.py",
            "engine/test_torch_tools.py::test_parameter_hooks_fire_once",
            "engine/test_torch_tools.py::test_tensor_hooks_inside_a_function_fire_once",
            "engine/test_torch_tools.py::test_full_backward_hooks_on_the_net_fire_once",
        ),
    ),
    Promise(
        "PyTorch's FLOP counter, profiler and anomaly mode work around a step",
        (
            "engine/test_torch_tools.py::test_flop_counter_mode_around_a_step",
            "engine/test_torch_tools.py::test_profiler_around_a_step",
            "engine/test_torch_tools.py::test_anomaly_mode_around_a_step",
            "engine/test_torch_tools.py::test_anomaly_mode_finds_a_nan_inside_a_function",
        ),
    ),
    Promise(
        "Gradients accumulate; several forwards may come before one backward",
        (
            "engine/test_gradients.py::test_gradients_accumulate_over_several_forwards",
            "engine/test_buffers.py::test_batchnorm_with_two_forwards_before_one_backward",
            "engine/test_buffers.py::test_batchnorm_with_interleaved_backward_passes",
        ),
    ),
    Promise(
        "Two threads, each with its own step on one net, on the CPU: gradients, BatchNorm's counts "
        "and dropout's "
        "masks are right",
        ("trust/test_threads.py",),
    ),
    Promise(
        "Exported programs, traced scripts and quantized copies of a net compute what it does",
        ("trust/test_exporting.py",),
    ),
    Promise(
        "Functions may be compiled, and `torch.compile` around the net gives right results, with a "
        "graph break",
        ("trust/test_compiling.py",),
    ),
    Promise(
        "A step of `rg.compile` gives plain autograd's gradients under any plan, writes buffers once and "
        'draws random numbers once, with backend "aot" those of the net itself',
        (
            "compiling/test_compiled_steps.py",
            "compiling/test_dynamic.py",
            "compiling/test_inductor.py",
            "compiling/test_side_effects.py::test_an_operator_of_ones_own_that_writes_a_buffer_writes_it_once",
        ),
    ),
    Promise(
        "A compiled step holds the bytes that its plan foresees, and no more in deeper nets",
        ("compiling/test_compiled_memory.py",),
    ),
    Promise(
        "`torch.func` (grad, vjp, jvp, vmap, Jacobians) and forward-mode derivatives of a whole "
        "net are right; "
        "under them nothing is dropped",
        ("trust/test_transforms.py",),
    ),
    Promise(
        "`copy.deepcopy`, `pickle`, and `state_dict` both ways with the plain model",
        (
            "engine/test_module.py::test_deepcopy_is_independent",
            "engine/test_module.py::test_pickle_and_torch_save_of_the_whole_net",
            "engine/test_module.py::test_state_dict_has_the_models_keys_and_loads_both_ways",
        ),
    ),
    Promise(
        "A function that is not deterministic (on the CPU), or edits its input, is an error with the "
        "node's name",
        (
            "trust/test_determinism.py",
            "engine/test_edits.py::test_a_function_that_edits_its_input_is_right_or_a_clear_error",
            "engine/test_edits.py::test_a_replay_that_saves_other_tensors_is_refused_by_name",
        ),
    ),
    Promise(
        "An exception inside a function stays what it is, gains the node's name, and leaves the net usable",
        ("engine/test_failures.py",),
    ),
    Promise(
        "Training that was interrupted, by `kill -9` too, resumes bit for bit",
        ("training/test_killing.py",),
    ),
    Promise(
        "DistributedDataParallel and FSDP2 (`fully_shard`) on two processes give the gradients of one; "
        "distributed checkpoints load at another number of processes",
        (
            "trust/test_distributed.py",
            "trust/test_training_together.py",
        ),
    ),
    Promise(
        "The same graph gives the same plan in every process, whatever else the machine does; cost never "
        "rises with the budget, nothing that fits is refused, and no plan of the frontier, of textbook "
        "segments or of one decision is cheaper in the same bytes",
        ("trust/test_planner.py", "planning/test_budgets.py", "planning/test_search.py"),
    ),
    Promise(
        "A plan comes back from its file equal, and files that are edited, broken or for another network are "
        "refused; processes that train together have one plan",
        ("planning/test_plan_files.py", "trust/test_sharing_plans.py"),
    ),
    Promise(
        "Drift is seen by `check`, warned of by `watch_drift`, and bounded by `max_drift`",
        ("trust/test_drift.py",),
    ),
    Promise(
        "In exact mode every rebuilt value and every gradient is bit for bit that of stored activations, at "
        "1,000 blocks too",
        ("trust/test_exact_mode.py",),
    ),
    Promise(
        "A hostile or broken specification ends in a SpecError in bounded time and memory, and runs no code",
        ("trust/test_hostile_specs.py", "specs/test_hostile.py"),
    ),
    Promise(
        "Damaged, forged and foreign files are refused and leave what was there; a full disk or a kill while "
        "saving loses nothing that was saved",
        ("trust/test_hostile_files.py", "trust/test_full_disk.py"),
    ),
    Promise(
        "Log-determinants of flows are those of autograd's Jacobian, with plain autograd's gradients, under "
        "any decisions",
        (
            "family/test_flows.py::test_log_determinants_are_those_of_the_jacobian",
            "family/test_flows.py::test_gradients_of_the_likelihood_are_plain_autograds",
        ),
    ),
    Promise(
        "A converted network begins as the pretrained one, with its own weights, and leaves that as it was",
        (
            "conversion/test_conversion.py::test_at_a_tiny_beta_the_output_is_the_pretrained_one_in_float32",
            "conversion/test_conversion.py::test_weights_are_the_models_own_and_keep_their_names",
            "conversion/test_conversion.py::test_the_model_is_left_as_it_was",
        ),
    ),
    Promise(
        "On the CPU, the bytes predicted for a plan's peak and turn are those measured, to the byte; on the "
        "nets tried, also between any two evaluations of nodes",
        ("planning/test_prediction.py", "planning/test_tracking.py"),
    ),
    Promise(
        "What is scheduled is what runs, hand-made plans too: on random graphs with random decisions, "
        "reruns, drops and kept results, evaluations, FLOPs and bytes are the schedule's",
        ("engine/test_plans_by_hand.py", "engine/test_schedule.py"),
    ),
    Promise(
        "Contexts around the forward (default device and dtype, autocast, attention kernels, determinism, "
        "modes) hold in replays, or are refused by name",
        ("engine/test_contexts.py",),
    ),
    Promise(
        "Noise that kernels fill late, tensors that autograd drops, buffers and attributes written in any "
        "way, strides of any kind, recurrent layers, `None` among results: gradients are plain autograd's",
        (
            "engine/test_late_noise.py",
            "engine/test_dropped_tensors.py",
            "engine/test_moving_buffers.py",
            "engine/test_running_statistics.py",
            "engine/test_memory_formats.py",
            "engine/test_recurrent_and_attention.py",
            "engine/test_result_forms.py",
            "engine/test_odd_parameters.py",
        ),
    ),
    Promise(
        "Sparse tensors are right, costed and measured; nested, quantized and opaque ones are right or "
        "refused when traced; inference tensors are right or refused by name",
        ("engine/test_storageless.py", "engine/test_inference_tensors.py"),
    ),
    Promise(
        "A backward pass over two devices, each with a thread of autograd's, gives plain autograd's "
        "gradients in whichever order they ask",
        ("engine/test_several_devices.py",),
    ),
    Promise(
        "The bytes that `inverse` holds for its own gradients do not grow with depth",
        ("engine/test_inverse_memory.py",),
    ),
    Promise(
        "Drift that flips a choice or crosses a kink is told as drift, with the node where it begins; a "
        "gradient that is zero by symmetry is no alarm",
        ("engine/test_flipped_choices.py", "engine/test_check_alarms.py", "engine/test_verdicts.py"),
    ),
)

FAULTS = (
    Fault(
        "A function draws from Python's, numpy's or a generator of its own, counts its calls, or reads what "
        "it left behind, in float64 and float32",
        "ReplayError with the node's name; kept, it is right",
        (
            "trust/test_determinism.py::test_a_function_that_is_not_deterministic_is_refused_by_name",
            "trust/test_determinism.py::test_one_such_function_among_others_is_found_at_its_place",
            "trust/test_determinism.py::test_such_a_function_may_be_kept",
        ),
    ),
    Fault(
        "A function saves more, fewer or other tensors at its second run",
        "ReplayError with the node's name",
        ("engine/test_edits.py::test_a_replay_that_saves_other_tensors_is_refused_by_name",),
    ),
    Fault(
        "An attribute of the last function is changed between forward and backward",
        "ReplayError with the node's name; the net is usable afterwards",
        (
            "trust/test_determinism.py::test_an_attribute_changed_between_forward_and_backward_is_refused",
            "trust/test_determinism.py::test_the_net_is_usable_after_such_a_refusal",
        ),
    ),
    Fault(
        "Weights three times as large in 24 blocks of float32, so that nothing rebuilt is right",
        "`check` reports it; it is not taken for a function that is not deterministic",
        ("trust/test_determinism.py::test_drift_is_not_taken_for_it",),
    ),
    Fault(
        "A function edits its input in place",
        "The right gradient, or an error with the node's name",
        ("engine/test_edits.py::test_a_function_that_edits_its_input_is_right_or_a_clear_error",),
    ),
    Fault(
        "Outputs, inputs, anchors, or views of them are edited between forward and backward",
        "ReplayError with the value's name",
        (
            "engine/test_edits.py::test_an_edit_of_the_output_is_refused_by_name",
            "engine/test_edits.py::test_an_edit_of_an_output_stream_is_refused_by_name",
            "engine/test_edits.py::test_an_edit_of_a_stored_input_is_refused_by_name",
            "engine/test_edits.py::test_an_edit_of_an_anchor_is_refused_by_name",
            "engine/test_edits.py::test_an_edit_through_a_view_is_refused",
        ),
    ),
    Fault(
        "Parameters or buffers are changed or replaced between forward and backward",
        "The right gradient, or ReplayError with the node's name",
        (
            "engine/test_edits.py::test_an_optimizer_step_between_forward_and_backward_is_refused",
            "engine/test_edits.py::test_a_bias_alone_changed_between_forward_and_backward_is_refused",
            ""
            "engine/test_edits.py::test_a_parameter_replaced_between_forward_and_backward_is_right_or_refused",
            "engine/test_edits.py::test_a_buffer_changed_between_forward_and_backward_is_refused",
            "trust/test_transforms.py::test_functional_call_in_ordinary_autograd",
        ),
    ),
    Fault(
        "Weights, buffers, layers, hooks, flags or inputs are changed between forward and backward, also "
        "where no version counts it (fused optimizers, `.data`)",
        "The right gradient, or an error that names this cause and no other",
        ("engine/test_advice.py", "engine/test_late_changes.py"),
    ),
    Fault(
        "A function raises, in the forward or in a replay",
        "The same error with the node's name; gradients, buffers and random numbers of the next "
        "step are right",
        ("engine/test_failures.py",),
    ),
    Fault(
        "Two threads train one net, changing over every ten microseconds",
        "Gradients, BatchNorm's counts and dropout's masks as in one thread",
        ("trust/test_threads.py",),
    ),
    Fault(
        "`rg.compile` meets a function that the compiler cannot read, a sharded net, or no compiler",
        "The engine runs that step and a warning says why; without a compiler an error that says what to do",
        (
            "compiling/test_side_effects.py::test_what_the_compiler_cannot_read_runs_on_the_engine_and_says_why",
            "compiling/test_side_effects.py::test_sharded_nets_run_on_the_engine",
            "compiling/test_side_effects.py::test_a_missing_compiler_is_an_error",
        ),
    ),
    Fault(
        "The whole net is compiled with `fullgraph=True`",
        "The compiler's error; the net is usable afterwards",
        ("trust/test_compiling.py::test_fullgraph_is_refused_and_leaves_the_net_usable",),
    ),
    Fault(
        "`kill -9` during training",
        "The resumed run's losses are bitwise those of an undisturbed one",
        ("training/test_killing.py",),
    ),
)


def names() -> list[str]:
    """Every test that a promise or a fault names, once, in order."""
    return list(dict.fromkeys(name for each in (*PROMISES, *FAULTS) for name in each.tests))
