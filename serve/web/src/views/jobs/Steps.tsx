/** The gradient steps of a job: small charts and a table. */
import { Chart } from "../../components/Chart";
import { compact, duration, number, percent } from "../../components/format";
import { type Column, Table } from "../../components/Table";
import type { JobEvent } from "./types";

interface Shown {
  names: string[];
  label: string;
  format: (value: number) => string;
  charted?: boolean;
}

const METRICS: Shown[] = [
  { names: ["loss/train", "loss"], label: "Loss", format: number, charted: true },
  { names: ["loss/grad_norm", "grad_norm"], label: "Gradient norm", format: number, charted: true },
  { names: ["loss/entropy"], label: "Entropy", format: number, charted: true },
  { names: ["loss/clip_fraction"], label: "Clipped", format: percent, charted: true },
  { names: ["loss/kl_policy_ref"], label: "KL", format: number, charted: true },
  { names: ["dpo/accuracy", "loss/accuracy"], label: "Pairs ranked right", format: percent, charted: true },
  { names: ["loss/learning_rate", "learning_rate"], label: "Learning rate", format: number },
  { names: ["data/step_trainer_tokens", "num_trainable_tokens"], label: "Tokens", format: compact },
  { names: ["time/step_trainer_s"], label: "Seconds", format: duration },
];

function valueOf(event: JobEvent, { names }: Shown): number | null {
  for (const name of names) {
    const value = event.data[name];
    if (typeof value === "number") return value;
  }
  return null;
}

export function Steps({ events }: { events: readonly JobEvent[] }) {
  const steps = events.filter((event) => event.type === "gradient_step");
  if (steps.length === 0) return null;
  const known = METRICS.filter((metric) => steps.some((event) => valueOf(event, metric) !== null));
  const x = steps.map((_, index) => index + 1);
  const rows = steps.map((event, index) => ({ event, number: index + 1 }));
  const columns: Column<(typeof rows)[number]>[] = [
    { key: "number", label: "Step", width: "70px", align: "right", cell: (row) => row.number },
    ...known.map((metric) => ({
      key: metric.label,
      label: metric.label,
      align: "right" as const,
      cell: (row: (typeof rows)[number]) => {
        const value = valueOf(row.event, metric);
        return value === null ? <span class="muted">–</span> : metric.format(value);
      },
    })),
  ];
  return (
    <section aria-labelledby="steps">
      <h2 id="steps">Gradient steps</h2>
      {steps.length > 1 && (
        <div class="small-charts">
          {known.filter((metric) => metric.charted).map((metric) => (
            <Chart
              key={metric.label}
              title={metric.label}
              x={x}
              xLabel="step"
              height={130}
              sync="steps"
              format={metric.format}
              series={[{ label: metric.label.toLowerCase(), values: steps.map((event) => valueOf(event, metric)) }]}
            />
          ))}
        </div>
      )}
      <Table label="Gradient steps" columns={columns} rows={rows} rowKey={(row) => String(row.number)} rowHeight={30} height={rows.length > 10 ? "320px" : undefined} />
    </section>
  );
}
