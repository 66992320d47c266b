/** The state of a model that a client of the Tinker API trains by its own calls. Nothing for other models. */
import { useRefresh } from "../../app/refresh";
import { type Page } from "../../app/api";
import { useGet } from "../../app/resource";
import { href } from "../../app/router";
import { Badge, StateBadge } from "../../components/Badge";
import { CopyButton } from "../../components/CopyButton";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";

interface Run {
  run_id: string;
  state: "idle" | "waiting" | "training" | "unloaded";
  waiting_for: string | null;
  num_calls: number;
  num_waiting_calls: number;
  last_call: { seq: number; kind: string; ended_at: string; error: string | null } | null;
  start_path: string | null;
  last_request_at: string;
}

const REFRESH_S = 5;

export function ClientRun({ modelId }: { modelId: string }) {
  const runs = useGet<Page<Run>>("v1/preview/tinker-runs", { model_id: modelId });
  useRefresh(runs, REFRESH_S);
  const run = runs.data?.data[0];
  if (!run) return null;
  const last = run.last_call;
  return (
    <section class="card" aria-label="Training client">
      <dl class="facts">
        <dt>Trained by</dt>
        <dd>
          <a href={href("/start", { client: "tinker" })}>a client of the Tinker API</a> <StateBadge state={run.state} />
        </dd>
        <dt>Run</dt>
        <dd><code>{run.run_id}</code> <CopyButton text={run.run_id} of="the run's id" /></dd>
        <dt>Calls</dt>
        <dd>
          {run.num_calls} done{run.num_waiting_calls > 0 && `, ${run.num_waiting_calls} waiting`}
          {last && <>; last <code>{last.kind}</code> {last.seq}, <Time at={last.ended_at} /></>}
          {last?.error && <> <Badge tone="bad">failed</Badge> <Text value={last.error} max={300} /></>}
        </dd>
        {run.waiting_for && <><dt>Waits for</dt><dd><Text value={run.waiting_for} max={300} /></dd></>}
        {run.start_path && <><dt>Began with</dt><dd><code><Text value={run.start_path} max={200} /></code></dd></>}
        <dt>Last request</dt>
        <dd><Time at={run.last_request_at} /></dd>
      </dl>
    </section>
  );
}
