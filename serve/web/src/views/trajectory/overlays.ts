/** What colours the tokens: each overlay has a value per token, a scale, and a legend. */
import { number } from "../../components/format";
import type { Columns, Sequence, TrajectoryTokens } from "./types";

export interface Overlay {
  key: string;
  label: string;
  /** What the colour means, as a sentence. */
  about: string;
  /** The value of a token, null without one. */
  value: (columns: Columns, at: number, sequence: Sequence, version: number | null) => number | null;
  /** From -1 (blue) over 0 (none) to 1 (orange). */
  scale: (value: number, whole: TrajectoryTokens) => number;
  /** Values of the legend, from the lowest to the highest. */
  legend: (whole: TrajectoryTokens) => number[];
  needsTraining: boolean;
}

function clamp(value: number): number {
  return Math.max(-1, Math.min(1, value));
}

/** A scale that is as wide as the values, at least `least`, at most `most`. */
function width(range: { min: number; max: number } | null, least: number, most: number): number {
  const size = range ? Math.max(Math.abs(range.min), Math.abs(range.max)) : least;
  return Math.max(least, Math.min(most, size));
}

function advantageWidth(whole: TrajectoryTokens): number {
  return Math.max(1, ...whole.sequences.map((one) => Math.abs(one.advantage ?? 0)));
}

const around = (size: number): number[] => [-size, -size / 2, 0, size / 2, size];
const IMPROBABLE = 8; // nats: a probability of 0.03 %

function versions(whole: TrajectoryTokens): number[] {
  const found = new Set<number>();
  for (const sequence of whole.sequences) {
    for (const turn of sequence.turns) if (turn.policy_version !== null) found.add(turn.policy_version);
  }
  return [...found].sort((a, b) => a - b).slice(0, 7);
}

export const OVERLAYS: Overlay[] = [
  {
    key: "advantage",
    label: "Advantage",
    about: "The loss makes orange tokens more probable, and blue ones less.",
    value: (columns, at, sequence) => (columns.mask[at] ? sequence.advantage : null),
    scale: (value, whole) => clamp(value / advantageWidth(whole)),
    legend: (whole) => around(advantageWidth(whole)),
    needsTraining: true,
  },
  {
    key: "logprob",
    label: "Logprob",
    about: "The more orange, the less probable: the learner's logprob, or the sampler's of tokens that weren't trained.",
    value: (columns, at) => columns.learner_logprobs[at] ?? columns.sampling_logprobs[at] ?? null,
    scale: (value) => clamp(-value / IMPROBABLE),
    legend: () => [0, -2, -4, -6, -8],
    needsTraining: false,
  },
  {
    key: "difference",
    label: "Learner − sampler",
    about: "Logprob of the learner at the gradient step minus that of the sampler. In a job's first step it is the engine's error; in later ones the policy has moved.",
    value: (columns, at) => {
      const [learner, sampled] = [columns.learner_logprobs[at] ?? null, columns.sampling_logprobs[at] ?? null];
      return learner === null || sampled === null ? null : learner - sampled;
    },
    scale: (value, whole) => clamp(value / width(whole.differences, 0.01, 2)),
    legend: (whole) => around(width(whole.differences, 0.01, 2)),
    needsTraining: true,
  },
  {
    key: "ratio",
    label: "Ratio",
    about: "Importance ratio at token level: how many times more probable the token was at the gradient step than when it was sampled.",
    value: (columns, at) => columns.ratios[at] ?? null,
    scale: (value, whole) => clamp(Math.log(Math.max(value, 1e-30)) / ratioWidth(whole)),
    legend: (whole) => around(ratioWidth(whole)).map(Math.exp),
    needsTraining: true,
  },
  {
    key: "mask",
    label: "Mask",
    about: "Blue tokens were trained; the others are context.",
    value: (columns, at) => (columns.mask[at] ? 1 : 0),
    scale: (value) => -0.7 * value,
    legend: () => [0, 1],
    needsTraining: true,
  },
  {
    key: "version",
    label: "Version",
    about: "The policy version that sampled the token.",
    value: (_columns, _at, _sequence, version) => version,
    scale: () => 0, // its colours are those of series
    legend: versions,
    needsTraining: false,
  },
  {
    key: "plain",
    label: "Plain",
    about: "No colours: only the borders of tokens.",
    value: () => null,
    scale: () => 0,
    legend: () => [],
    needsTraining: false,
  },
];

function ratioWidth(whole: TrajectoryTokens): number {
  const range = whole.ratios;
  const logs = range ? { min: Math.log(Math.max(range.min, 1e-30)), max: Math.log(Math.max(range.max, 1e-30)) } : null;
  return width(logs, 0.01, 2);
}

/** Return the background of a value: blue below 0, orange above, both readable with the text on them. */
export function background(level: number): string {
  const share = Math.round(Math.min(1, Math.abs(level)) * 55);
  if (share === 0) return "transparent";
  return `color-mix(in srgb, var(${level < 0 ? "--series-1" : "--series-2"}) ${share}%, transparent)`;
}

export function versionBackground(version: number, legend: number[]): string {
  const place = legend.indexOf(version);
  return place < 0 ? "transparent" : `color-mix(in srgb, var(--series-${(place % 7) + 1}) 40%, transparent)`;
}

export function colour(overlay: Overlay, value: number | null, whole: TrajectoryTokens, legend: number[]): string | undefined {
  if (value === null) return undefined;
  const shade = overlay.key === "version" ? versionBackground(value, legend) : background(overlay.scale(value, whole));
  return shade === "transparent" ? undefined : shade;
}

export function legendText(overlay: Overlay, value: number): string {
  if (overlay.key === "mask") return value ? "trained" : "context";
  return overlay.key === "version" ? String(value) : number(value, 3);
}
