/** The conversation of a trajectory up to a turn, to continue it in the playground. */
import { get } from "../../app/api";
import { segment } from "../../app/router";
import type { Message, ToolCall } from "./chat";

interface SentChoice {
  message: { role: string; content?: unknown; tool_calls?: ToolCall[] | null };
}

interface SentTrajectory {
  messages_and_choices?: (Message | SentChoice)[];
  tools?: unknown[] | null;
}

export interface Continued {
  messages: Message[];
  tools: unknown[] | null;
}

/** Load what stands before a turn: "TID.3" is everything before the choice or message number 3, counted from 0. */
export async function loadFrom(from: string, signal: AbortSignal): Promise<Continued> {
  const dot = from.lastIndexOf(".");
  const id = from.slice(0, dot);
  const turn = Number(from.slice(dot + 1));
  const found = await get<{ trajectory?: SentTrajectory } & SentTrajectory>(`v1/preview/trajectories/${segment(id)}`, {}, { signal });
  const trajectory = found.trajectory ?? found;
  const messages = (trajectory.messages_and_choices ?? []).slice(0, turn).map((item) => ("message" in item ? item.message : item));
  return { messages: messages as Message[], tools: trajectory.tools ?? null };
}
