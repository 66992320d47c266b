/** Turns as a conversation: roles, text, tool calls and results, with JSON folded. */
import { href } from "../../app/router";
import { Badge } from "../../components/Badge";
import { Text, TextBlock } from "../../components/Text";
import type { Json } from "./types";
import type { ShownTurn } from "./turns";

const LONG = 1500;

/** `id`: of the trajectory, whose turns the playground can then continue. */
export function Conversation({ turns, id }: { turns: ShownTurn[]; id?: string }) {
  return (
    <ol class="conversation">
      {turns.map((turn, index) => (
        <li key={index}>
          {index > 0 && turn.history !== turns[index - 1]?.history && <h3>History {turn.history}</h3>}
          <TurnBox turn={turn} id={id} />
        </li>
      ))}
    </ol>
  );
}

export function TurnBox({ turn, id }: { turn: ShownTurn; id?: string | undefined }) {
  return (
    <article class={`turn role-${/^[a-z]+$/.test(turn.role) ? turn.role : "other"}${turn.sampled ? " sampled" : ""}`}>
      <header>
        <strong><Text value={turn.role} max={20} /></strong>
        {turn.of && <code><Text value={turn.of} max={40} /></code>}
        {turn.sampled && <Badge tone="info">sampled{turn.version !== null && ` by version ${turn.version}`}</Badge>}
        {turn.finish && turn.finish !== "stop" && turn.finish !== "tool_calls" && <Badge tone="warn"><Text value={turn.finish} max={20} /></Badge>}
        {id && turn.continues && <a class="again" href={href("/playground", { from: `${id}.${turn.index}` })}>Sample it again</a>}
      </header>
      {turn.reasoning && (
        <details>
          <summary>Reasoning, {turn.reasoning.length} characters</summary>
          <TextBlock value={turn.reasoning} label="Reasoning" />
        </details>
      )}
      {turn.text && <Body text={turn.text} label={`Text of ${turn.role}`} />}
      {turn.calls.map((call, index) => (
        <details key={index} class="call" open={call.arguments.length < 300}>
          <summary>calls <code><Text value={call.name || "a tool"} max={60} /></code></summary>
          <Body text={call.arguments} label={`Arguments of ${call.name}`} />
        </details>
      ))}
      {!turn.text && !turn.reasoning && turn.calls.length === 0 && <p class="muted">Empty</p>}
    </article>
  );
}

/** Text, or JSON with its parts folded. */
function Body({ text, label }: { text: string; label: string }) {
  const json = parsed(text);
  if (json !== undefined) return <div class="json"><Value value={json} depth={0} /></div>;
  if (text.length <= LONG) return <TextBlock value={text} label={label} />;
  return (
    <details class="long">
      <summary><Text value={text} max={300} /> <span class="muted">{text.length} characters</span></summary>
      <TextBlock value={text} label={label} />
    </details>
  );
}

function parsed(text: string): Json | undefined {
  if (!/^\s*[[{]/.test(text) || text.length > 200_000) return undefined;
  try {
    return JSON.parse(text) as Json;
  } catch {
    return undefined;
  }
}

const MANY = 200;

function Value({ value, depth }: { value: Json; depth: number }) {
  if (typeof value === "string") return <span class="string"><Text value={JSON.stringify(value)} /></span>;
  if (value === null || typeof value !== "object") return <span class="literal">{String(value)}</span>;
  const entries: [string, Json][] = Array.isArray(value) ? value.map((item, index) => [String(index), item]) : Object.entries(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (entries.length === 0) return <span>{open}{close}</span>;
  return (
    <details open={depth < 2 && entries.length <= 20}>
      <summary>{open} {entries.length} {close}</summary>
      <ul>
        {entries.slice(0, MANY).map(([name, item]) => (
          <li key={name}><span class="key"><Text value={name} max={80} /></span>: <Value value={item} depth={depth + 1} /></li>
        ))}
        {entries.length > MANY && <li class="muted">and {entries.length - MANY} more</li>}
      </ul>
    </details>
  );
}
