/** The turns of a trajectory as it was sent, in any form: messages and choices, further histories, exchanges. */
import type { Json } from "./types";

export interface ToolCall {
  name: string;
  arguments: string;
}

export interface ShownTurn {
  role: string;
  text: string;
  reasoning: string;
  calls: ToolCall[];
  /** Of a tool's result: the call or the tool. */
  of: string;
  sampled: boolean;
  version: number | null;
  finish: string;
  /** The playground can sample it again: it is a choice of the trajectory's own history. */
  continues: boolean;
  /** Index of the history, and of the turn in it. */
  history: number;
  index: number;
}

type Fields = { [key: string]: Json };

export function fields(value: Json | undefined): Fields {
  return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
}

function list(value: Json | undefined): Json[] {
  return Array.isArray(value) ? value : [];
}

function word(value: Json | undefined): string {
  return typeof value === "string" ? value : "";
}

function whole(value: Json | undefined): number | null {
  return typeof value === "number" ? value : null;
}

/** Return the text of a message's content, which may come in parts. */
export function contentText(value: Json | undefined): string {
  if (typeof value === "string") return value;
  return list(value)
    .map((part) => {
      if (typeof part === "string") return part;
      const { text, refusal, type, content } = fields(part);
      const own = word(text) || word(refusal) || (content === undefined ? "" : contentText(content));
      return own || `[${word(type) || "part"}]`;
    })
    .join("");
}

function turnOf(message: Fields, history: number, index: number, more: Partial<ShownTurn> = {}): ShownTurn {
  const parts = list(message["content"]).map(fields);
  const uses = parts.filter((part) => part["type"] === "tool_use");
  const results = parts.filter((part) => part["type"] === "tool_result");
  const calls = list(message["tool_calls"]).map((call) => {
    const { function: called, custom } = fields(call);
    const { name, arguments: given, input } = fields(called ?? custom);
    return { name: word(name), arguments: word(given) || word(input) };
  });
  const own = fields(message["function_call"]);
  if (word(own["name"])) calls.push({ name: word(own["name"]), arguments: word(own["arguments"]) });
  for (const use of uses) calls.push({ name: word(use["name"]), arguments: JSON.stringify(use["input"] ?? {}) });
  const texts = parts.length ? parts.filter((part) => part["type"] !== "tool_use") : null;
  return {
    role: results.length && results.length === parts.length ? "tool" : word(message["role"]) || "assistant",
    text: texts ? contentText(texts) : contentText(message["content"]) || word(message["refusal"]),
    reasoning: word(message["reasoning"]) || word(message["reasoning_content"]),
    calls,
    of: word(message["name"]) || word(message["tool_call_id"]),
    sampled: false,
    version: null,
    finish: "",
    continues: false,
    history,
    index,
    ...more,
  };
}

function ofHistory(items: Json | undefined, history: number): ShownTurn[] {
  return list(items).map((item, index) => {
    const choice = fields(item);
    if (choice["finish_reason"] === undefined || choice["message"] === undefined) return turnOf(choice, history, index);
    return turnOf(fields(choice["message"]), history, index, {
      sampled: true,
      continues: history === 0,
      version: whole(choice["policy_version"]),
      finish: word(choice["finish_reason"]),
    });
  });
}

/** A request repeats the conversation before it: only what is new in it is shown. */
function ofExchanges(exchanges: Fields): ShownTurn[] {
  const found: { at: string; turns: ShownTurn[] }[] = [];
  const known = new Set<string>();
  for (const [protocol, listed] of Object.entries(exchanges)) {
    list(listed).forEach((item, index) => {
      const { request, response, start_time } = fields(item);
      const asked = fields(request);
      const answer = fields(response);
      const turns: ShownTurn[] = [];
      const prompt = asked["messages"] ?? asked["input"] ?? asked["prompt"];
      const before = typeof prompt === "string" ? [{ role: "user", content: prompt }] : list(prompt).map(fields);
      const system = asked["system"] ?? asked["instructions"];
      for (const message of system === undefined || system === null ? before : [{ role: "system", content: system }, ...before]) {
        const key = JSON.stringify(message);
        if (!known.has(key)) turns.push(turnOf(message, 0, index));
        known.add(key);
      }
      const version = whole(answer["policy_version"]);
      const more = { sampled: true, version };
      for (const choice of list(answer["choices"]).map(fields)) {
        const message = choice["message"] === undefined ? { content: choice["text"] ?? "" } : fields(choice["message"]);
        turns.push(turnOf(message, 0, index, { ...more, version: whole(choice["policy_version"]) ?? version, finish: word(choice["finish_reason"]) }));
        known.add(JSON.stringify(message));
      }
      if (protocol === "messages") turns.push(turnOf(answer, 0, index, { ...more, role: "assistant", finish: word(answer["stop_reason"]) }));
      for (const output of list(answer["output"]).map(fields)) {
        if (output["type"] === "function_call") {
          turns.push(turnOf({ role: "assistant", tool_calls: [{ function: output }] }, 0, index, more));
        } else turns.push(turnOf({ role: "assistant", ...output }, 0, index, more));
      }
      found.push({ at: word(start_time), turns });
    });
  }
  found.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  return found.flatMap((one) => one.turns);
}

/** Return all turns, those of further histories after the first. */
export function turnsOf(trajectory: Json): ShownTurn[] {
  const whole = fields(trajectory);
  const turns = ofHistory(whole["messages_and_choices"], 0);
  list(whole["additional_histories"]).forEach((history, index) => {
    turns.push(...ofHistory(fields(history)["messages_and_choices"], index + 1));
  });
  return [...turns, ...ofExchanges(fields(whole["exchanges"]))];
}

/** Return how many turns all trajectories begin with alike. */
export function commonTurns(all: ShownTurn[][]): number {
  const [first, ...others] = all;
  if (!first || others.length === 0) return 0;
  const key = (turn: ShownTurn | undefined): string =>
    turn ? JSON.stringify([turn.role, turn.text, turn.reasoning, turn.calls, turn.history]) : "";
  let same = 0;
  while (same < first.length && others.every((turns) => key(turns[same]) === key(first[same]))) same += 1;
  return same;
}
