/** Chats with any version of any model of the key, or with two side by side about the same prompt. */
import { useEffect, useRef, useState } from "preact/hooks";
import { useGet, useResource } from "../../app/resource";
import { setQuery, type ViewProps } from "../../app/router";
import { Badge } from "../../components/Badge";
import { ErrorBox } from "../../components/ErrorBox";
import { Text } from "../../components/Text";
import { AnswerView } from "./AnswerView";
import { ask, asMessage, newAnswer, type Answer, type Message } from "./chat";
import { loadFrom } from "./fromTrajectory";
import { ModelField } from "./ModelField";
import { DEFAULTS, requestOptions, type Options } from "./options";
import { OptionsForm } from "./OptionsForm";

const SIDES = ["a", "b"] as const;
type Side = (typeof SIDES)[number];

/** A prompt, and what each side answered. */
interface Turn {
  prompt: string;
  answers: Partial<Record<Side, Answer>>;
  chosen: Record<Side, number>;
}

interface NamedModels {
  data: { id: string }[];
}

export function Playground({ query }: ViewProps) {
  const names = useGet<NamedModels>("v1/models");
  const suggestions = names.data?.data.map((model) => model.id) ?? [];
  const own = suggestions.find((name) => name.split("/").length === 3) ?? suggestions[0] ?? "";
  const sides = SIDES.filter((side) => side === "a" || query.has("b"));
  const [options, setOptions] = useState<Options>(DEFAULTS);
  const [turns, setTurns] = useState<Turn[]>([]);
  const [prompt, setPrompt] = useState("");
  const [fault, setFault] = useState<Error | null>(null);
  const running = useRef<AbortController | null>(null);
  const [busy, setBusy] = useState(false);
  const from = query.get("from");
  const start = useResource(async (signal) => (from ? await loadFrom(from, signal) : null), [from]);
  const models: Record<Side, string> = { a: query.get("a") ?? start.data?.model ?? own, b: query.get("b") ?? "" };
  useEffect(() => {
    setTurns([]);
    if (start.data?.tools) setOptions((old) => ({ ...old, tools: JSON.stringify(start.data?.tools, null, 2) }));
  }, [start.data]);
  useEffect(() => () => running.current?.abort(), []);
  const context = start.data?.messages ?? [];
  const canContinue = context.length > 0 && turns.length === 0 && context[context.length - 1]?.role !== "assistant";

  function history(side: Side): Message[] {
    const system: Message[] = options.system.trim() ? [{ role: "system", content: options.system }] : [];
    const said = turns.flatMap((turn) => {
      const choice = turn.answers[side]?.choices[turn.chosen[side]];
      const asked: Message[] = turn.prompt ? [{ role: "user", content: turn.prompt }] : [];
      return choice ? [...asked, asMessage(choice)] : asked;
    });
    return [...system, ...context, ...said];
  }

  async function run(): Promise<void> {
    const asked = prompt.trim();
    if (busy || (!asked && !canContinue)) return;
    let fields: Record<string, unknown>;
    try {
      fields = requestOptions(options);
      for (const side of sides) if (!models[side]) throw new Error("Choose a model on each side.");
    } catch (error) {
      setFault(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    setFault(null);
    const controller = (running.current = new AbortController());
    const place = turns.length;
    const user: Message[] = asked ? [{ role: "user", content: asked }] : [];
    const requests = sides.map((side) => ({ side, request: { ...fields, model: models[side], messages: [...history(side), ...user] } }));
    const waiting = Object.fromEntries(sides.map((side) => [side, newAnswer()]));
    setTurns((old) => [...old, { prompt: asked, answers: waiting, chosen: { a: 0, b: 0 } }]);
    setPrompt("");
    setBusy(true);
    const report = (side: Side, answer: Answer): void =>
      setTurns((old) => old.map((turn, index) => (index === place ? { ...turn, answers: { ...turn.answers, [side]: answer } } : turn)));
    await Promise.all(requests.map(({ side, request }) => ask(request, controller.signal, (answer) => report(side, answer))));
    if (running.current === controller) setBusy(false);
  }

  function clear(): void {
    running.current?.abort();
    setTurns([]);
    setBusy(false);
  }

  function choose(place: number, side: Side, index: number): void {
    setTurns((old) => old.map((turn, at) => (at === place ? { ...turn, chosen: { ...turn.chosen, [side]: index } } : turn)));
  }

  return (
    <>
      <h1>Playground</h1>
      {names.error && <ErrorBox error={names.error} onRetry={names.reload} />}
      <div class={sides.length > 1 ? "playground two" : "playground"}>
        {sides.map((side) => (
          <div key={side} class="playground-model">
            <ModelField
              label={sides.length > 1 ? `Model ${side.toUpperCase()}` : "Model"}
              value={models[side]}
              suggestions={suggestions}
              onChange={(name) => setQuery({ [side]: name })}
            />
          </div>
        ))}
      </div>
      <div class="row">
        {sides.length > 1
          ? <button type="button" onClick={() => setQuery({ b: null })}>Only one version</button>
          : <button type="button" onClick={() => setQuery({ a: models.a, b: models.a })}>Compare with another version</button>}
        <button type="button" aria-pressed={options.logprobs} onClick={() => setOptions({ ...options, logprobs: !options.logprobs })}>Show tokens</button>
        <button type="button" onClick={clear} disabled={turns.length === 0}>Clear</button>
      </div>
      <OptionsForm options={options} onChange={setOptions} />
      {start.error && <ErrorBox error={start.error} onRetry={start.reload} />}
      {context.length > 0 && <Context messages={context} />}
      <ol class="plain turns" aria-label="Conversation">
        {turns.map((turn, place) => (
          <li key={place}>
            {turn.prompt && <p class="turn-prompt" dir="auto"><span class="sr-only">You: </span><Text value={turn.prompt} /></p>}
            <div class={sides.length > 1 ? "playground two" : "playground"}>
              {sides.map((side) => {
                const answer = turn.answers[side];
                return (
                  <section key={side} class="card" aria-label={`Answer of ${side.toUpperCase()}`}>
                    {answer
                      ? <AnswerView answer={answer} showTokens={options.logprobs} chosen={turn.chosen[side]} onChoose={(index) => choose(place, side, index)} />
                      : <p class="muted">This side wasn't asked.</p>}
                  </section>
                );
              })}
            </div>
          </li>
        ))}
      </ol>
      {fault && <ErrorBox error={fault} />}
      <form class="prompt-form" onSubmit={(event) => (event.preventDefault(), void run())}>
        <textarea
          name="prompt"
          aria-label="Prompt"
          rows={3}
          dir="auto"
          placeholder={canContinue ? "Leave it empty to sample the next turn of the trajectory" : "A message to every version shown. Enter sends it, Shift+Enter starts a line."}
          value={prompt}
          onInput={(event) => setPrompt(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            void run();
          }}
        />
        {busy
          ? <button type="button" class="danger" onClick={() => running.current?.abort()}>Stop</button>
          : <button type="submit" class="primary" disabled={!prompt.trim() && !canContinue}>{canContinue && !prompt.trim() ? "Continue" : "Send"}</button>}
      </form>
    </>
  );
}

/** The conversation that is continued. */
function Context({ messages }: { messages: Message[] }) {
  return (
    <details class="card" open>
      <summary>{messages.length} messages of the trajectory</summary>
      <ol class="plain turns">
        {messages.map((message, index) => (
          <li key={index} class="context-message">
            <Badge>{message.role}</Badge>
            <p class="answer-text" dir="auto"><Text value={textOf(message)} max={20_000} /></p>
          </li>
        ))}
      </ol>
    </details>
  );
}

function textOf(message: Message): string {
  const content = typeof message.content === "string" ? message.content : message.content ? JSON.stringify(message.content) : "";
  const calls = message.tool_calls?.map((call) => `${call.function.name}(${call.function.arguments})`).join("\n") ?? "";
  return [content, calls].filter(Boolean).join("\n");
}
