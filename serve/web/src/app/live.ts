/** What changes in the service, as it changes: one stream of server-sent events per tab, for all views together. */
import { effect, signal } from "@preact/signals";
import { createParser, type EventSourceMessage } from "eventsource-parser";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, send, url } from "./api";
import { session } from "./session";

/** A message of GET /v1/preview/changes. `reset`: messages were missed, so read again what is shown. */
export interface Change {
  kind: "job" | "event" | "version" | "model" | "alert" | "reset";
  data: Readonly<Record<string, unknown>>;
}

/** Chooses messages: of some kinds, of one job or of some models. `reset` always fits. */
export interface Filter {
  kinds?: readonly Change["kind"][];
  job?: string;
  models?: readonly string[];
}

export type LiveState = "off" | "connecting" | "live" | "reconnecting";

/** The state of the stream; "off" while no view uses it. */
export const liveState = signal<LiveState>("off");
/** Why the stream isn't open, as a sentence. */
export const liveProblem = signal<string | null>(null);

const KINDS: readonly string[] = ["job", "event", "version", "model", "alert", "reset"];
const SILENCE_MS = 40_000; // the service sends a comment every 15 s
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 20_000;
const LINGER_MS = 3_000; // a view that follows another one uses the same stream
const RELOAD_MS = 400;
const FIRST_RESET_MS = 2_500;

type Listener = (change: Change) => void;
const listeners = new Set<Listener>();
let connection: Connection | null = null;
let lingering = 0;

/** Call `handler` for each change that fits, while the view is shown. */
export function useChanges(filter: Filter, handler: (change: Change) => void): void {
  const latest = useRef(handler);
  latest.current = handler;
  useEffect(() => listen((change) => fits(filter, change) && latest.current(change)), [JSON.stringify(filter)]);
}

/** Load again what a view shows when something that fits has changed, a few times a second at most. */
export function useReloads(filter: Filter, reload: () => void): void {
  const timer = useRef(0);
  const latest = useRef(reload);
  latest.current = reload;
  useEffect(() => () => clearTimeout(timer.current), []);
  useChanges(filter, () => {
    if (timer.current) return;
    timer.current = window.setTimeout(() => {
      timer.current = 0;
      latest.current();
    }, RELOAD_MS);
  });
}

function fits({ kinds, job, models }: Filter, { kind, data }: Change): boolean {
  if (kind === "reset") return true;
  if (kinds && !kinds.includes(kind)) return false;
  if (job !== undefined && job !== (data["job_id"] ?? data["id"])) return false;
  const model = data["model_id"] ?? data["id"];
  return models === undefined || (typeof model === "string" && models.includes(model));
}

function listen(listener: Listener): () => void {
  listeners.add(listener);
  clearTimeout(lingering);
  connection ??= new Connection();
  return () => {
    listeners.delete(listener);
    if (listeners.size > 0) return;
    lingering = window.setTimeout(() => {
      connection?.close();
      connection = null;
    }, LINGER_MS);
  };
}

effect(() => {
  void session.value?.id; // another key sees other changes
  if (!connection) return;
  connection.close();
  connection = listeners.size > 0 && session.peek() ? new Connection() : null;
});

/** The stream, opened again whenever it ends, until it is closed. */
class Connection {
  private readonly closing = new AbortController();
  private lastId: string | null = null;
  private waitMs = FIRST_WAIT_MS;
  private wake: (() => void) | null = null;

  constructor() {
    window.addEventListener("online", () => this.wake?.(), { signal: this.closing.signal });
    void this.run();
  }

  close(): void {
    this.closing.abort();
    this.wake?.();
    liveState.value = "off";
    liveProblem.value = null;
  }

  private async run(): Promise<void> {
    this.show("connecting", null);
    while (!this.closing.signal.aborted) {
      try {
        await this.read();
        this.show("reconnecting", "The service ended the stream.");
      } catch (error) {
        if (this.closing.signal.aborted) return;
        if (error instanceof ApiError && [401, 403, 404].includes(error.status)) return this.show("off", error.message);
        this.show("reconnecting", error instanceof ApiError ? error.message : "The connection broke.");
      }
      await this.pause();
    }
  }

  private show(state: LiveState, problem: string | null): void {
    if (this.closing.signal.aborted) return;
    liveState.value = state;
    liveProblem.value = problem;
  }

  /** Wait longer each time, and not all pages at the same moment. */
  private async pause(): Promise<void> {
    const ms = this.waitMs * (0.75 + Math.random() / 2);
    this.waitMs = Math.min(LONGEST_WAIT_MS, this.waitMs * 2);
    await new Promise<void>((resolve) => {
      const timer = window.setTimeout(resolve, ms);
      this.wake = () => (clearTimeout(timer), resolve());
    });
    this.wake = null;
  }

  private async read(): Promise<void> {
    const silence = new AbortController();
    const signal = AbortSignal.any([this.closing.signal, silence.signal]);
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (this.lastId !== null) headers["last-event-id"] = this.lastId;
    let timer = window.setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      const response = await send("GET", url("v1/preview/changes"), undefined, { headers, signal });
      const parser = createParser({ onEvent: (message) => this.take(message) });
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
        clearTimeout(timer);
        timer = window.setTimeout(() => silence.abort(), SILENCE_MS);
        parser.feed(part.value);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  private take(message: EventSourceMessage): void {
    if (this.closing.signal.aborted) return;
    const isFirst = this.lastId === null;
    this.lastId = message.id ?? this.lastId;
    this.show("live", null);
    this.waitMs = FIRST_WAIT_MS;
    // What changed between a view's first request and `ready` has no message.
    if (message.event === "ready" && isFirst) {
      // Later, because it makes views load again, and now they load for the first time.
      window.setTimeout(() => this.tell({ kind: "reset", data: {} }), FIRST_RESET_MS);
      return;
    }
    const kind = message.event;
    if (kind === undefined || !KINDS.includes(kind)) return;
    const data: unknown = JSON.parse(message.data);
    if (typeof data !== "object" || data === null) return;
    this.tell({ kind: kind as Change["kind"], data: data as Change["data"] });
  }

  private tell(change: Change): void {
    if (this.closing.signal.aborted) return;
    for (const listener of [...listeners]) listener(change);
  }
}
