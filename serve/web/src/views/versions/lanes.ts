/** The lines of the tree beside its rows, which go from the newest version down: as in a graph of commits. */
import type { TreeItem } from "./types";

export interface Lanes {
  /** The lane of the row's point. */
  at: number;
  /** Lanes that pass the row from top to bottom. */
  passing: number[];
  /** Lanes that come from above and end in the point: its children. */
  joining: number[];
  /** Whether the line goes on below the point, to a parent in this model. */
  continues: boolean;
  width: number;
}

/** Return the lanes of each item. An item's parent, if it is of the same model, is further down. */
export function lanesOf(items: readonly TreeItem[], modelId: string): Lanes[] {
  const waiting: (number | null)[] = []; // the parent's step of each lane that comes from above
  return items.map((item) => {
    const joining = waiting.flatMap((step, lane) => (step !== null && step >= item.first_step && step <= item.last_step ? [lane] : []));
    const free = waiting.indexOf(null);
    const at = joining[0] ?? (free >= 0 ? free : waiting.length);
    const passing = waiting.flatMap((step, lane) => (step !== null && !joining.includes(lane) ? [lane] : []));
    for (const lane of joining) waiting[lane] = null;
    const parent = item.parent && item.parent.model_id === modelId && item.parent.model === null ? item.parent.step : null;
    waiting[at] = parent;
    const width = Math.max(at, ...passing, ...joining) + 1;
    while (waiting.length > 0 && waiting[waiting.length - 1] === null) waiting.pop();
    return { at, passing, joining, continues: parent !== null, width };
  });
}
