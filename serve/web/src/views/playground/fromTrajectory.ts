/** The conversation of a trajectory up to a turn, to continue it in the playground. */
import { get } from "../../app/api";
import { segment } from "../../app/router";
import { session } from "../../app/session";
import type { Message } from "./chat";

interface SentChoice {
  message: Message;
}

interface History {
  messages_and_choices?: (Message | SentChoice)[];
  tools?: unknown[] | null;
}

interface SentTrajectory extends History {
  additional_histories?: History[] | null;
}

interface Sent {
  trajectory: SentTrajectory;
  model: string;
  last_version: number | null;
}

export interface Continued {
  /** The name of the model that sampled the trajectory, at the version of its last turn if it is known. */
  model: string;
  messages: Message[];
  tools: unknown[] | null;
}

/**
 * Load what stands before a turn. "TID.3" is everything before the message or choice number 3 of the trajectory, counted
 * from 0; "TID.1.3" that of its first additional history.
 */
export async function loadFrom(from: string, signal: AbortSignal): Promise<Continued> {
  const parts = from.split(".");
  const id = parts.slice(0, 3).join(".");
  const [history, turn] = parts.length > 4 ? [Number(parts[3]), Number(parts[4])] : [0, Number(parts[3])];
  const { trajectory, model, last_version } = await get<Sent>(`v1/preview/trajectories/${segment(id)}`, {}, { signal });
  const found = history === 0 ? trajectory : trajectory.additional_histories?.[history - 1];
  if (!found?.messages_and_choices || !Number.isInteger(turn)) {
    throw new Error("This turn can't be continued here: its trajectory has no messages and choices at that place, or was sent as exchanges of another protocol.");
  }
  const messages = found.messages_and_choices.slice(0, turn).map((item) => withoutNulls("message" in item ? item.message : item));
  const name = `${session.value?.entity ?? ""}/${model}${last_version === null ? "" : `:step${last_version}`}`;
  return { model: name, messages, tools: found.tools ?? trajectory.tools ?? null };
}

function withoutNulls(message: Message): Message {
  return Object.fromEntries(Object.entries(message).filter(([, value]) => value !== null)) as unknown as Message;
}
