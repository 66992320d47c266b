/** Which curves a model has, and the series that a chart draws. */
import type { AlarmBand, ChartSeries } from "../../components/Chart";
import { duration, number, percent } from "../../components/format";
import type { Evaluation, ModelHistory, Point } from "./types";

/** A chart: one line per metric. Of metrics that mean the same for other kinds of jobs, those that exist are drawn. */
export interface Curve {
  key: string;
  title: string;
  lines: { metric: string; label: string }[];
  format?: (value: number) => string;
}

export const CURVES: Curve[] = [
  { key: "reward", title: "Reward", lines: [{ metric: "reward", label: "mean" }] },
  { key: "loss", title: "Loss", lines: [{ metric: "loss/train", label: "loss" }, { metric: "sft/loss", label: "cross-entropy" }] },
  { key: "entropy", title: "Entropy", lines: [{ metric: "loss/entropy", label: "entropy" }] },
  { key: "kl", title: "KL from the reference", lines: [{ metric: "loss/kl_policy_ref", label: "KL" }] },
  { key: "clip", title: "Clipped tokens", lines: [{ metric: "loss/clip_fraction", label: "share" }], format: percent },
  {
    key: "lag",
    title: "Policy lag, in versions",
    lines: [{ metric: "policy_lag/mean", label: "mean" }, { metric: "policy_lag/max", label: "largest" }],
  },
  {
    key: "mismatch",
    title: "Sampler against learner, in nats",
    lines: [{ metric: "logprobs/sampled_current_abs_diff_mean", label: "mean" }],
  },
  {
    key: "mismatch-max",
    title: "Sampler against learner, largest, in nats",
    lines: [{ metric: "logprobs/sampled_current_abs_diff_max", label: "largest" }],
  },
  { key: "norm", title: "Gradient norm", lines: [{ metric: "loss/grad_norm", label: "norm" }, { metric: "sft/grad_norm", label: "norm (sft)" }] },
  {
    key: "tokens",
    title: "Trained tokens",
    lines: [{ metric: "data/step_num_tokens_trained", label: "tokens" }, { metric: "sft/num_trainable_tokens", label: "tokens (sft)" }],
  },
  {
    key: "seconds",
    title: "Seconds of the job",
    lines: [{ metric: "job/seconds", label: "running" }, { metric: "job/queued_seconds", label: "in the queue" }],
    format: duration,
  },
  { key: "rate", title: "Learning rate", lines: [{ metric: "loss/learning_rate", label: "rate" }, { metric: "sft/learning_rate", label: "rate (sft)" }] },
];

type Values = (number | null)[];

/** Return values smoothed exponentially; 0 leaves them. Missing values stay missing. */
export function smoothed(values: Values, weight: number): Values {
  if (weight === 0) return values;
  let mean = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight); // so that the first values aren't drawn towards 0
    return mean / total;
  });
}

export function valuesOf(points: readonly Point[], metric: string, which: 0 | 1 | 2 = 1): Values {
  return points.map((point) => point.metrics[metric]?.[which] ?? null);
}

interface Options {
  smoothing: number;
  log: boolean;
  evaluations: readonly Evaluation[];
}

/** Return the series of a chart; none if no version has its metrics. */
export function seriesOf(curve: Curve, points: readonly Point[], options: Options): ChartSeries[] {
  const drawable = (values: Values): Values => (options.log ? values.map((value) => (value !== null && value > 0 ? value : null)) : values);
  const found: ChartSeries[] = [];
  curve.lines.forEach(({ metric, label }, color) => {
    const values = valuesOf(points, metric);
    if (values.every((value) => value === null)) return;
    const [low, high] = spreadOf(points, metric);
    const isSpread = low.some((value, index) => value !== high[index]);
    const band = isSpread ? { low: drawable(low), high: drawable(high) } : {};
    found.push({ label, color, values: drawable(smoothed(values, options.smoothing)), spanGaps: true, ...band });
  });
  if (curve.key === "reward" && found.length > 0) found.push(...evaluationSeries(points, options.evaluations, drawable));
  return found;
}

/** The spread of rewards is that of the trajectories, where it is known; of others, that of versions drawn as one point. */
function spreadOf(points: readonly Point[], metric: string): [Values, Values] {
  if (metric !== "reward") return [valuesOf(points, metric, 0), valuesOf(points, metric, 2)];
  const edge = (name: string, which: 0 | 2, sign: number): Values =>
    points.map((point) => {
      const [reward, around] = [point.metrics["reward"], point.metrics["reward_std_dev"]];
      return point.metrics[name]?.[which] ?? (reward ? reward[which] + sign * (around?.[1] ?? 0) : null);
    });
  return [edge("reward/quantile_10", 0, -1), edge("reward/quantile_90", 2, 1)];
}

function evaluationSeries(points: readonly Point[], evaluations: readonly Evaluation[], drawable: (values: Values) => Values): ChartSeries[] {
  const splits = [...new Set(evaluations.map((one) => one.split))].sort();
  return splits.slice(0, 5).map((split, index) => {
    const sums = points.map(() => ({ sum: 0, count: 0 }));
    for (const { split: own, step, metrics } of evaluations) {
      const reward = metrics["reward"];
      const at = points.findIndex((point) => step <= point.step);
      const bucket = sums[at === -1 ? points.length - 1 : at];
      if (own !== split || reward === undefined || !bucket) continue;
      bucket.sum += reward;
      bucket.count += 1;
    }
    const values = sums.map(({ sum, count }) => (count ? sum / count : null));
    return { label: `evaluation: ${split}`, color: index + 1, values: drawable(values), spanGaps: true, marks: true };
  });
}

/** Return the ranges in which the service itself takes sampler and learner for different. */
export function alarmsOf(curve: Curve, limits: ModelHistory["limits"]): AlarmBand[] {
  const limit = limits[curve.lines[0]?.metric ?? ""];
  return limit === undefined ? [] : [{ from: limit, tone: "bad" }];
}

/** Return a sentence about the alarm band. */
export function alarmText(curve: Curve, limits: ModelHistory["limits"]): string | null {
  const limit = limits[curve.lines[0]?.metric ?? ""];
  return limit === undefined ? null : `Shaded: above ${number(limit)}, where the service takes sampler and learner for different.`;
}

/** Seconds since 1970. */
export function secondsOf(point: Point): number {
  return new Date(point.created_at).getTime() / 1000;
}
