/** One streamed chat completion: what is asked, and what has arrived. */
import { EventSourceParserStream } from "eventsource-parser/stream";
import { ApiError, send, url } from "../../app/api";

export interface ToolCall {
  id?: string;
  type?: string;
  function: { name: string; arguments: string };
}

export interface Message {
  role: string;
  content?: unknown;
  tool_calls?: ToolCall[] | null;
  tool_call_id?: string;
  name?: string;
}

/** A sampled token, and others that the policy gave a high probability. */
export interface Token {
  text: string;
  id: number | null;
  logprob: number;
  others: { text: string; logprob: number }[];
}

export interface Choice {
  text: string;
  reasoning: string;
  toolCalls: ToolCall[];
  finish: string | null;
  tokens: Token[];
}

export interface Answer {
  state: "waiting" | "streaming" | "done" | "stopped" | "failed";
  choices: Choice[];
  /** The version that answered, and the digest of its checkpoint. */
  version: string | null;
  digest: string | null;
  /** Seconds until the first token, and until now. */
  firstS: number | null;
  seconds: number;
  /** Sampled tokens: as the service counted them, or until now. */
  numTokens: number;
  error: Error | null;
}

export interface Request {
  model: string;
  messages: Message[];
  [option: string]: unknown;
}

interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: number[] | null;
  top_logprobs?: { token: string; logprob: number; bytes: number[] | null }[];
}

interface ChunkChoice {
  index: number;
  delta?: { content?: string | null; reasoning?: string | null; reasoning_content?: string | null; tool_calls?: ToolDelta[] | null };
  logprobs?: { content?: TokenLogprob[] | null } | null;
  token_ids?: number[] | null;
  finish_reason?: string | null;
}

interface ToolDelta {
  index: number;
  id?: string;
  type?: string;
  function?: { name?: string; arguments?: string };
}

interface Chunk {
  choices?: ChunkChoice[];
  usage?: { completion_tokens?: number } | null;
  error?: { message: string; code?: string | number | null };
}

const REDRAW_MS = 50;

export function newAnswer(): Answer {
  return { state: "waiting", choices: [], version: null, digest: null, firstS: null, seconds: 0, numTokens: 0, error: null };
}

/** Ask, and report the answer as it grows. Never throws: a failure is part of the answer. */
export async function ask(request: Request, signal: AbortSignal, report: (answer: Answer) => void): Promise<void> {
  const began = performance.now();
  const answer = newAnswer();
  let timer = 0;
  const show = (): void => {
    clearTimeout(timer);
    timer = 0;
    answer.seconds = (performance.now() - began) / 1000;
    report({ ...answer, choices: [...answer.choices] });
  };
  try {
    const body = { ...request, stream: true, stream_options: { include_usage: true } };
    const response = await send("POST", url("v1/chat/completions"), body, { signal, headers: { accept: "text/event-stream" } });
    answer.state = "streaming";
    answer.version = response.headers.get("x-policy-version");
    answer.digest = response.headers.get("x-policy-digest");
    show();
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new ApiError(0, String(chunk.error.code ?? "engine"), chunk.error.message);
      take(answer, chunk);
      if (answer.firstS === null && answer.numTokens > 0) answer.firstS = (performance.now() - began) / 1000;
      timer ||= window.setTimeout(show, REDRAW_MS); // tokens may come faster than the page can draw them
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) answer.error = error instanceof Error ? error : new Error(String(error));
  }
  show();
}

async function* chunks(response: Response): AsyncGenerator<Chunk> {
  if (!response.body) throw new Error("The service's answer has no content.");
  const reader = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The stream ended before the answer was complete. The service may have been stopped; send the prompt again.");
    if (value.data === "[DONE]") return;
    yield JSON.parse(value.data) as Chunk;
  }
}

/** Add a chunk of the stream to the answer. */
export function take(answer: Answer, chunk: Chunk): void {
  for (const part of chunk.choices ?? []) {
    while (answer.choices.length <= part.index) answer.choices.push({ text: "", reasoning: "", toolCalls: [], finish: null, tokens: [] });
    const old = answer.choices[part.index] as Choice;
    const tokens = tokensOf(part);
    answer.choices[part.index] = {
      text: old.text + (part.delta?.content ?? ""),
      reasoning: old.reasoning + (part.delta?.reasoning ?? part.delta?.reasoning_content ?? ""),
      toolCalls: withCalls(old.toolCalls, part.delta?.tool_calls ?? []),
      finish: part.finish_reason ?? old.finish,
      tokens: tokens.length > 0 ? old.tokens.concat(tokens) : old.tokens,
    };
    answer.numTokens += tokens.length;
  }
  if (chunk.usage?.completion_tokens) answer.numTokens = chunk.usage.completion_tokens;
}

function withCalls(calls: ToolCall[], deltas: ToolDelta[]): ToolCall[] {
  if (deltas.length === 0) return calls;
  const grown = [...calls];
  for (const delta of deltas) {
    const old = grown[delta.index] ?? { function: { name: "", arguments: "" } };
    const { name = "", arguments: more = "" } = delta.function ?? {};
    grown[delta.index] = { id: delta.id ?? old.id, type: "function", function: { name: old.function.name + name, arguments: old.function.arguments + more } };
  }
  return grown;
}

function tokensOf(part: ChunkChoice): Token[] {
  const content = part.logprobs?.content ?? [];
  const whole = part.delta?.content ?? part.delta?.reasoning ?? part.delta?.reasoning_content;
  return content.map((entry, index) => ({
    text: textOf(entry, content.length === 1 ? whole : null),
    id: part.token_ids?.[index] ?? idOf(entry.token),
    logprob: entry.logprob,
    others: (entry.top_logprobs ?? []).map((other) => ({ text: textOf(other, null), logprob: other.logprob })),
  }));
}

/** The text of a token: from its bytes, else that of its chunk, else its name, which may be only its id. */
function textOf(entry: { token: string; bytes: number[] | null }, whole: string | null | undefined): string {
  const text = entry.bytes ? new TextDecoder().decode(new Uint8Array(entry.bytes)) : null;
  if (text && !text.startsWith("token_id:")) return text;
  return whole || entry.token.replace(/^token_id:/, "#");
}

function idOf(token: string): number | null {
  const found = /^token_id:(\d+)$/.exec(token);
  return found ? Number(found[1]) : null;
}

/** The message with which a conversation goes on after a choice. */
export function asMessage(choice: Choice): Message {
  const calls = choice.toolCalls.filter(Boolean);
  return { role: "assistant", content: choice.text, ...(calls.length > 0 ? { tool_calls: calls } : {}) };
}
