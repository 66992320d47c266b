/** Several models on one axis, and which of them learns faster. */
import { secondsOf, smoothed, valuesOf } from "../model/series";
import type { ModelHistory } from "../model/types";

type Values = (number | null)[];

export interface Curve {
  id: string;
  history: ModelHistory;
}

/** A common axis of at most `cells` places, and for each model the place of each of its points. */
export interface Axis {
  x: number[];
  places: number[][];
}

/** `byTime`: hours since a model's first version; otherwise versions. */
export function axisOf(curves: readonly Curve[], byTime: boolean, cells = 400): Axis {
  const at = curves.map(({ history }) => {
    const first = history.data[0];
    const began = first ? secondsOf(first) : 0;
    return history.data.map((point) => (byTime ? (secondsOf(point) - began) / 3600 : point.step));
  });
  const all = [...new Set(at.flat())].sort((a, b) => a - b);
  if (all.length <= cells) {
    const index = new Map(all.map((value, place) => [value, place]));
    return { x: all, places: at.map((values) => values.map((value) => index.get(value) ?? 0)) };
  }
  const low = all[0] ?? 0;
  const width = ((all[all.length - 1] ?? 0) - low) / cells || 1;
  const x = Array.from({ length: cells }, (_, cell) => low + (cell + 0.5) * width);
  return { x, places: at.map((values) => values.map((value) => Math.min(cells - 1, Math.floor((value - low) / width)))) };
}

/** Return a metric of a model on the axis: the mean of the points in a place, the least and the largest value. */
export function onAxis(axis: Axis, model: number, history: ModelHistory, metric: string): [Values, Values, Values] {
  const [low, mean, high] = [0, 1, 2].map((which) => valuesOf(history.data, metric, which as 0 | 1 | 2)) as [Values, Values, Values];
  const found: [Values, Values, Values] = [axis.x.map(() => null), axis.x.map(() => null), axis.x.map(() => null)];
  const counts = axis.x.map(() => 0);
  axis.places[model]?.forEach((place, index) => {
    const [least, value, largest] = [low[index], mean[index], high[index]];
    if (value === null || value === undefined || least === null || least === undefined || largest === null || largest === undefined) return;
    const count = (counts[place] = (counts[place] ?? 0) + 1);
    const [lows, means, highs] = [found[0], found[1], found[2]];
    lows[place] = Math.min(lows[place] ?? least, least);
    means[place] = (means[place] ?? 0) + (value - (means[place] ?? 0)) / count;
    highs[place] = Math.max(highs[place] ?? largest, largest);
  });
  return found;
}

export interface Speed {
  id: string;
  first: number;
  latest: number;
  versions: number;
  /** The version at which the smoothed reward first reached the common level, and the hours until then; null if it never did. */
  reached: { step: number; hours: number } | null;
}

export interface Speeds {
  /** The reward that models are compared at: halfway between where they began and the best that one has reached. */
  level: number;
  models: Speed[];
  /** The model that reached it with the fewest versions, and the one that needed the least time. */
  byVersions: string | null;
  byTime: string | null;
}

/** Compare how fast rewards rise. Null unless every model has two rewards. */
export function speedsOf(curves: readonly Curve[]): Speeds | null {
  const rewards = curves.map(({ history }) => history.data.filter((point) => point.metrics["reward"] !== undefined));
  if (rewards.length < 2 || rewards.some((points) => points.length < 2)) return null;
  const smooth = rewards.map((points) => smoothed(valuesOf(points, "reward"), points.length > 8 ? 0.7 : 0) as number[]);
  const starts = rewards.map((points) => average(valuesOf(points, "reward") as number[], 0));
  const level = (average(starts, null) + Math.max(...smooth.flat())) / 2;
  const models = curves.map(({ id }, model) => {
    const points = rewards[model] ?? [];
    const index = (smooth[model] ?? []).findIndex((value) => value >= level);
    const [began, at] = [points[0], points[index]];
    const last = points[points.length - 1];
    return {
      id,
      first: starts[model] ?? 0,
      latest: average(valuesOf(points, "reward") as number[], 1),
      versions: last?.step ?? 0,
      reached: at && began ? { step: at.step, hours: (secondsOf(at) - secondsOf(began)) / 3600 } : null,
    };
  });
  return { level, models, byVersions: fastest(models, (one) => one.step), byTime: fastest(models, (one) => one.hours) };
}

/** Return the mean of the first or last tenth of the values, or of all. */
function average(values: readonly number[], end: 0 | 1 | null): number {
  const count = end === null ? values.length : Math.max(1, Math.floor(values.length / 10));
  const some = end === 1 ? values.slice(-count) : values.slice(0, count);
  return some.reduce((sum, value) => sum + value, 0) / Math.max(1, some.length);
}

function fastest(models: readonly Speed[], of: (reached: { step: number; hours: number }) => number): string | null {
  const there = models.filter((model) => model.reached !== null).sort((a, b) => of(a.reached as never) - of(b.reached as never));
  const [best, second] = there;
  if (!best?.reached || (second?.reached && of(second.reached) === of(best.reached))) return null;
  return best.id;
}
