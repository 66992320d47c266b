/** The tokens of a trajectory, loaded in chunks when a block of them comes into sight. */
import { get } from "../../app/api";
import type { Columns, Sequence, TrajectoryTokens, Turn } from "./types";

export const CHUNK = 2000;
export const BLOCK = 400;

export class TokenStore {
  private readonly chunks = new Map<number, Columns>();
  private readonly asked = new Set<number>();
  private listeners = new Set<() => void>();
  error: Error | null = null;

  constructor(readonly whole: TrajectoryTokens) {
    this.chunks.set(Math.floor(whole.tokens.start / CHUNK), whole.tokens);
  }

  get numBlocks(): number {
    return Math.ceil(this.whole.num_tokens / BLOCK);
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Return the columns that have a token, null while they are loaded. */
  columns(token: number): Columns | null {
    const chunk = Math.floor(token / CHUNK);
    const found = this.chunks.get(chunk);
    if (!found && !this.asked.has(chunk)) void this.load(chunk);
    return found ?? null;
  }

  retry(): void {
    this.error = null;
    this.asked.clear();
    this.tell();
  }

  private async load(chunk: number): Promise<void> {
    this.asked.add(chunk);
    try {
      const part = await get<TrajectoryTokens>(`v1/preview/trajectories/${encodeURIComponent(this.whole.id)}/tokens`, { start: chunk * CHUNK, limit: CHUNK, as_sent: this.whole.reason === "as_sent" || null });
      this.chunks.set(chunk, part.tokens);
    } catch (error) {
      this.error = error instanceof Error ? error : new Error(String(error));
    }
    this.tell();
  }

  private tell(): void {
    for (const listener of this.listeners) listener();
  }

  sequenceOf(token: number): Sequence | null {
    return this.whole.sequences.findLast((one) => one.begin <= token) ?? null;
  }

  turnOf(token: number): Turn | null {
    const turn = this.sequenceOf(token)?.turns.findLast((one) => one.begin <= token);
    return turn && token < turn.begin + turn.num_tokens ? turn : null;
  }
}
