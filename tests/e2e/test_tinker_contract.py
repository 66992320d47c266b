"""The contract with the tinker SDK: each public method of its clients, and the test that calls it on a real service.

A method that a new version of the SDK adds fails here until a test calls it.
"""

import inspect
from types import FunctionType

import pytest
import test_tinker_contract_rest as of_rest
import test_tinker_contract_sampling as of_sampling
import test_tinker_contract_service as of_service
import test_tinker_contract_training as of_training
import tinker

CALLED_BY = {
    tinker.ServiceClient: {
        "close": of_service.test_runs_outlive_the_session_that_made_them,
        "copy_weights": of_rest.test_copies,
        "create_custom_loss": of_training.test_a_custom_loss_has_the_gradient_of_its_formula,
        "create_lora_training_client": of_training.test_runs_are_within_the_limits_of_their_base_model,
        "create_lora_training_client_async": of_service.test_runs_outlive_the_session_that_made_them,
        "create_rest_client": of_service.test_a_session_starts_and_closes_without_a_complaint,
        "create_sampling_client": of_training.test_samplers_have_the_weights_of_their_moment,
        "create_sampling_client_async": of_training.test_samplers_have_the_weights_of_their_moment,
        "create_training_client_from_state": of_training.test_a_run_continues_from_a_saved_state,
        "create_training_client_from_state_async": of_training.test_a_run_continues_from_a_saved_state,
        "create_training_client_from_state_with_optimizer": of_training.test_a_run_continues_from_a_saved_state,
        "create_training_client_from_state_with_optimizer_async": of_training.test_a_run_continues_from_a_saved_state,
        "get_console_url": of_service.test_a_session_starts_and_closes_without_a_complaint,
        "get_server_capabilities": of_service.test_a_session_starts_and_closes_without_a_complaint,
        "get_server_capabilities_async": of_service.test_a_session_starts_and_closes_without_a_complaint,
        "get_telemetry": of_service.test_a_session_starts_and_closes_without_a_complaint,
        "holder": of_service.test_a_session_starts_and_closes_without_a_complaint,
    },
    tinker.TrainingClient: {
        "create_sampling_client": of_training.test_samplers_have_the_weights_of_their_moment,
        "create_sampling_client_async": of_training.test_samplers_have_the_weights_of_their_moment,
        "forward": of_training.test_forward_changes_nothing_and_steps_do,
        "forward_async": of_training.test_forward_changes_nothing_and_steps_do,
        "forward_backward": of_training.test_forward_changes_nothing_and_steps_do,
        "forward_backward_async": of_training.test_forward_changes_nothing_and_steps_do,
        "forward_backward_custom": of_training.test_a_custom_loss_has_the_gradient_of_its_formula,
        "forward_backward_custom_async": of_training.test_a_custom_loss_has_the_gradient_of_its_formula,
        "get_console_url": of_training.test_a_run_describes_itself,
        "get_info": of_training.test_a_run_describes_itself,
        "get_info_async": of_training.test_a_run_describes_itself,
        "get_telemetry": of_training.test_a_run_describes_itself,
        "get_tokenizer": of_training.test_a_run_describes_itself,
        "load_state": of_training.test_a_run_continues_from_a_saved_state,
        "load_state_async": of_training.test_a_run_continues_from_a_saved_state,
        "load_state_with_optimizer": of_training.test_a_run_continues_from_a_saved_state,
        "load_state_with_optimizer_async": of_training.test_a_run_continues_from_a_saved_state,
        "optim_step": of_training.test_forward_changes_nothing_and_steps_do,
        "optim_step_async": of_training.test_forward_changes_nothing_and_steps_do,
        "save_state": of_training.test_a_run_continues_from_a_saved_state,
        "save_state_async": of_training.test_a_run_continues_from_a_saved_state,
        "save_weights_and_get_sampling_client": of_training.test_samplers_have_the_weights_of_their_moment,
        "save_weights_and_get_sampling_client_async": of_training.test_samplers_have_the_weights_of_their_moment,
        "save_weights_external": of_training.test_weights_leave_in_the_format_of_peft,
        "save_weights_external_async": of_training.test_weights_leave_in_the_format_of_peft,
        "save_weights_for_sampler": of_training.test_samplers_have_the_weights_of_their_moment,
        "save_weights_for_sampler_async": of_training.test_samplers_have_the_weights_of_their_moment,
    },
    tinker.SamplingClient: {
        "compute_logprobs": of_sampling.test_logprobs_of_the_prompt,
        "compute_logprobs_async": of_sampling.test_logprobs_of_the_prompt,
        "create": of_sampling.test_a_sampler_goes_to_other_processes,
        "from_sampler_handle": of_sampling.test_a_sampler_goes_to_other_processes,
        "get_base_model": of_sampling.test_what_a_sampler_is,
        "get_base_model_async": of_sampling.test_what_a_sampler_is,
        "get_sampler_handle": of_sampling.test_a_sampler_goes_to_other_processes,
        "get_telemetry": of_sampling.test_what_a_sampler_is,
        "get_tokenizer": of_sampling.test_what_a_sampler_is,
        "on_queue_state_change": of_sampling.test_what_a_sampler_is,
        "sample": of_sampling.test_samples_have_tokens_and_the_models_own_logprobs,
        "sample_async": of_sampling.test_samples_have_tokens_and_the_models_own_logprobs,
    },
    tinker.RestClient: {
        "assign_session_project": of_rest.test_what_this_service_refuses,
        "assign_session_project_async": of_rest.test_what_this_service_refuses,
        "copy_weights": of_rest.test_copies,
        "copy_weights_async": of_rest.test_copies,
        "delete_checkpoint": of_rest.test_deletion,
        "delete_checkpoint_async": of_rest.test_deletion,
        "delete_checkpoint_from_tinker_path": of_rest.test_deletion,
        "delete_checkpoint_from_tinker_path_async": of_rest.test_deletion,
        "export_session_trace": of_rest.test_what_this_service_refuses,
        "export_session_trace_async": of_rest.test_what_this_service_refuses,
        "get_audit_log": of_rest.test_what_this_service_refuses,
        "get_audit_log_async": of_rest.test_what_this_service_refuses,
        "get_billing_usage": of_rest.test_what_this_service_refuses,
        "get_billing_usage_async": of_rest.test_what_this_service_refuses,
        "get_current_checkpoint_storage_usage": of_rest.test_what_this_service_refuses,
        "get_current_checkpoint_storage_usage_async": of_rest.test_what_this_service_refuses,
        "get_external_weights_urls": of_rest.test_downloads,
        "get_external_weights_urls_async": of_rest.test_downloads,
        "get_sampler": of_rest.test_sessions_and_samplers,
        "get_sampler_async": of_rest.test_sessions_and_samplers,
        "get_server_capabilities": of_rest.test_capabilities,
        "get_session": of_rest.test_sessions_and_samplers,
        "get_session_async": of_rest.test_sessions_and_samplers,
        "get_telemetry": of_rest.test_what_this_service_refuses,
        "get_training_run": of_rest.test_training_runs,
        "get_training_run_async": of_rest.test_training_runs,
        "get_training_run_by_tinker_path": of_rest.test_training_runs,
        "get_training_run_by_tinker_path_async": of_rest.test_training_runs,
        "get_weights_info_by_tinker_path": of_rest.test_what_weights_are,
        "list_checkpoints": of_rest.test_checkpoints,
        "list_checkpoints_async": of_rest.test_checkpoints,
        "list_sessions": of_rest.test_sessions_and_samplers,
        "list_sessions_async": of_rest.test_sessions_and_samplers,
        "list_training_runs": of_rest.test_training_runs,
        "list_training_runs_async": of_rest.test_training_runs,
        "list_user_checkpoints": of_rest.test_checkpoints,
        "list_user_checkpoints_async": of_rest.test_checkpoints,
        "publish_checkpoint_from_tinker_path": of_rest.test_ttl_and_publishing,
        "publish_checkpoint_from_tinker_path_async": of_rest.test_ttl_and_publishing,
        "search_sessions": of_rest.test_sessions_and_samplers,
        "set_checkpoint_ttl_from_tinker_path": of_rest.test_ttl_and_publishing,
        "set_checkpoint_ttl_from_tinker_path_async": of_rest.test_ttl_and_publishing,
        "unpublish_checkpoint_from_tinker_path": of_rest.test_ttl_and_publishing,
        "unpublish_checkpoint_from_tinker_path_async": of_rest.test_ttl_and_publishing,
        "whoami": of_rest.test_what_this_service_refuses,
    },
}


@pytest.mark.parametrize("client", CALLED_BY, ids=lambda client: client.__name__)
def test_each_public_method_of_the_sdk_has_a_test_that_calls_it(client):
    public = {name for name, _ in inspect.getmembers(client) if not name.startswith("_")}
    assert public == CALLED_BY[client].keys()
    for method, test in CALLED_BY[client].items():
        assert isinstance(test, FunctionType)
        called = f".{method}." if method == "holder" else f".{method}("
        assert called in inspect.getsource(test), f"{test.__name__} doesn't call {method}"
