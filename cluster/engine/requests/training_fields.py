"""The names of what training reads in answers, and their places in each protocol.

Chat and completions: all on each choice. Messages: all on the message; in a stream, the prompt's ids, the version and
`sampled_with` on `message_start.message`, ids and logprobs beside `delta` of `message_delta`. Responses: the version on
the response, all of it on each of `token_generations`; in a stream, on the response of `response.completed`. Clients
keep unknown fields in these places, also when they put a stream together.
"""

POLICY_VERSION = "policy_version"
SAMPLED_WITH = "sampled_with"
PROMPT_TOKEN_IDS, TOKEN_IDS, LOGPROBS = "prompt_token_ids", "token_ids", "logprobs"

GENERATIONS = "token_generations"
"""Of a response: one object for each time that the engine generated, in order."""
OUTPUT_INDICES, OUTPUT_TOKENS = "output_indices", "output_tokens"
"""Of a generation: the indices of its items in `output`, and its tokens."""
TOKEN_ID, LOGPROB = "token_id", "logprob"
