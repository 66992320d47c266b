/** The lines to copy for each client. tests/web/test_page_start.py runs them as they are shown. */

export interface Place {
  /** The address of the service, without a slash at its end. */
  url: string;
  key: string;
  /** The name for completions. */
  model: string;
  baseModel: string;
}

export interface Snippet {
  id: string;
  label: string;
  /** What to install, in a shell. */
  install: string | null;
  about: string;
  code: (place: Place) => string;
}

const QUESTION = "Which is the largest: 3, 17 or 8?";
const text = (value: string): string => JSON.stringify(value); // also a string of Python and YAML

export const snippets: Snippet[] = [
  {
    id: "curl",
    label: "curl",
    install: null,
    about: "Sample from a model, by its newest version. Append :step3 to its name for version 3.",
    code: ({ url, key, model }) => `export TANDEM_URL=${shell(url)}
export TANDEM_API_KEY=${shell(key)}

curl --fail-with-body "$TANDEM_URL/v1/chat/completions" \\
  -H "Authorization: Bearer $TANDEM_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d ${shell(JSON.stringify({ model, messages: [{ role: "user", content: QUESTION }], max_tokens: 24 }))}`,
  },
  {
    id: "openai",
    label: "openai",
    install: "pip install openai",
    about: "Any OpenAI client samples. Each choice says which version answered.",
    code: ({ url, key, model }) => `from openai import OpenAI

client = OpenAI(base_url=${text(`${url}/v1`)}, api_key=${text(key)})

completion = client.chat.completions.create(
    model=${text(model)},
    messages=[{"role": "user", "content": ${text(QUESTION)}}],
    max_tokens=24,
)
choice = completion.choices[0]
print(choice.message.content)
print("version", choice.policy_version)`,
  },
  {
    id: "tandem",
    label: "tandem.client",
    install: "pip install .   # in a checkout of Tandem",
    about: "Sample, reward, train: one new version. Pass each choice on as you received it, because it carries the sampled tokens.",
    code: ({ url, key, baseModel }) => `from tandem.client import Client

client = Client(${text(url)}, ${text(key)})
openai = client.openai()
model = client.register_model("agent-1", project="demo", base_model=${text(baseModel)})

messages = [{"role": "user", "content": ${text(QUESTION)}}]
completion = openai.chat.completions.create(model=model.name, messages=messages, n=8, max_tokens=24)
group = {"trajectories": [
    {"messages_and_choices": [*messages, choice], "reward": float("17" in choice.message.content)}
    for choice in completion.choices
]}

job = client.train(model, [group], learning_rate=1e-3)
for event in client.events(job):
    print(event.type, event.data)
print("version", client.wait(job).step)`,
  },
  {
    id: "art",
    label: "openpipe-art",
    install: "pip install openpipe-art",
    about: "OpenPipe's client works unchanged: its serverless backend talks to this service.",
    code: ({ url, key, baseModel }) => `import asyncio
import art

async def main():
    backend = art.ServerlessBackend(base_url=${text(`${url}/v1`)}, api_key=${text(key)})
    model = art.TrainableModel(name="agent-1", project="demo", base_model=${text(baseModel)})
    await model.register(backend)
    messages = [{"role": "user", "content": ${text(QUESTION)}}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, n=8, max_tokens=24)
    group = art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[*messages, choice], reward=float("17" in choice.message.content))
        for choice in completion.choices)
    result = await backend.train(model, [group], learning_rate=1e-3)
    print("version", result.step)

asyncio.run(main())`,
  },
  {
    id: "tinker",
    label: "tinker",
    install: "pip install tinker",
    about: "The Tinker SDK works unchanged: losses and data stay in your loop, and each save is a version. Its key is this one behind tml-.",
    code: ({ url, key, baseModel }) => `import tinker

service = tinker.ServiceClient(base_url=${text(url)}, api_key=${text(`tml-${key}`)})
training = service.create_lora_training_client(${text(baseModel)}, rank=8).result()
tokenizer = training.get_tokenizer()

question, answer = tokenizer.encode(${text(QUESTION)}), tokenizer.encode(" 17")
tokens = question + answer
datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={"target_tokens": tokens[1:], "weights": [0.0] * (len(question) - 1) + [1.0] * len(answer)},
)
for _ in range(5):
    loss = training.forward_backward([datum], "cross_entropy")
    training.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    print(loss.result().metrics["loss:sum"])

sampler = training.save_weights_and_get_sampling_client().result()
prompt = tinker.ModelInput.from_ints(question)
sample = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=8)).result()
print(tokenizer.decode(sample.sequences[0].tokens))`,
  },
  {
    id: "anthropic",
    label: "anthropic",
    install: "pip install 'anthropic<1'   # for capture()",
    about: "Anthropic's Messages. The base URL has no /v1.",
    code: ({ url, key, model }) => `from anthropic import Anthropic

client = Anthropic(base_url=${text(url)}, api_key=${text(key)})

message = client.messages.create(
    model=${text(model)},
    max_tokens=24,
    messages=[{"role": "user", "content": ${text(QUESTION)}}],
)
print(message.content[0].text)`,
  },
  {
    id: "agents",
    label: "OpenAI Agents SDK",
    install: "pip install openai-agents",
    about: "Wrap a run in client.capture() of tandem.client to record a trajectory that trains.",
    code: ({ url, key, model }) => `import asyncio
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # it would send traces to OpenAI
client = AsyncOpenAI(base_url=${text(`${url}/v1`)}, api_key=${text(key)})
agent = Agent(
    "Assistant",
    model=OpenAIResponsesModel(${text(model)}, client),
    model_settings=ModelSettings(max_tokens=24),
)

async def main():
    result = await Runner.run(agent, ${text(QUESTION)})
    print(result.final_output)

asyncio.run(main())`,
  },
  {
    id: "train",
    label: "tandem train",
    install: "pip install .   # in a checkout of Tandem",
    about: "A whole run from one file: rollouts, training, evaluation. The same command resumes it.",
    code: ({ url, key, baseModel }) => `export TANDEM_URL=${shell(url)}
export TANDEM_API_KEY=${shell(key)}

cat > largest.yaml <<'END'
name: largest
environment: {class: "tandem.rl.environments.toy:Largest"}
model: {base_model: ${text(baseModel)}}
rollouts: {groups_per_job: 32, group_size: 8, max_tokens: 24}
training:
  jobs: 12
  max_policy_lag: 1
  experimental_config: {learning_rate: 2e-3, packed_sequence_length: 256}
evaluation: {every: 4, tasks: 64}
END
tandem train largest.yaml`,
  },
];

/** Quote for a POSIX shell. */
function shell(value: string): string {
  return `'${value.replaceAll("'", "'\\''")}'`;
}
