/** The engine replicas of a base model as cards, and those that ended. */
import { href, segment } from "../../app/router";
import { Badge, type Tone } from "../../components/Badge";
import { bytes, compact, count, percent } from "../../components/format";
import { Meter } from "../../components/Meter";
import { plain, Text } from "../../components/Text";
import { Time } from "../../components/Time";
import type { Ended, Engines, Replica } from "./types";

const TONES: Record<Replica["condition"], Tone> = {
  running: "good",
  asleep: "info",
  starting: "warn",
  stopping: "warn",
  unhealthy: "bad",
  not_answering: "bad",
};
const MAX_VERSIONS = 12;

export function EngineCards({ engines }: { engines: Engines }) {
  return (
    <>
      <div class="grid replicas">
        {engines.replicas.map((replica) => <Card key={replica.id} replica={replica} maxSeqs={engines.settings.max_num_seqs} />)}
      </div>
      {engines.ended.length > 0 && <EndedReplicas ended={engines.ended} restarts={engines.num_restarts} />}
    </>
  );
}

function Card({ replica, maxSeqs }: { replica: Replica; maxSeqs: number | null }) {
  return (
    <section class="card replica" aria-label={`Engine ${plain(replica.id)}`}>
      <header class="row">
        <h4 class="mono grow"><Text value={replica.id} max={40} /></h4>
        <Badge tone={TONES[replica.condition]}>{replica.condition.replace("_", " ")}</Badge>
      </header>
      {replica.fault && <p class="note bad"><Text value={replica.fault} /></p>}
      <p class="muted where">
        {[replica.device, replica.node && `on ${replica.node}`].filter(Boolean).map((part) => <span key={part}><Text value={part ?? ""} /> </span>)}
        {replica.started_at && <>since <Time at={replica.started_at} /></>}
      </p>
      {replica.adapters !== null && <Load replica={replica} maxSeqs={maxSeqs} />}
    </section>
  );
}

function Load({ replica, maxSeqs }: { replica: Replica; maxSeqs: number | null }) {
  const running = replica.requests_running ?? 0;
  const waiting = replica.requests_waiting ?? 0;
  const memory = replica.gpu_memory;
  return (
    <>
      <div class="meters">
        <Meter label="Batch" share={maxSeqs ? running / maxSeqs : null}>
          {count(running)}{maxSeqs ? ` of ${count(maxSeqs)}` : ""} running, {count(waiting)} waiting
        </Meter>
        <Meter label="KV cache" share={replica.kv_usage}>
          {percent(replica.kv_usage ?? 0)}{replica.kv_tokens ? ` of ${compact(replica.kv_tokens)} tokens` : ""}
        </Meter>
        <Meter label="Adapter slots" share={replica.slots ? (replica.slots_used ?? 0) / replica.slots : null} warnFrom={2}>
          {count(replica.slots_used ?? 0)} of {count(replica.slots ?? 0)} in the batch
        </Meter>
        <Meter label="Loaded versions" share={replica.adapter_capacity ? (replica.adapters ?? 0) / replica.adapter_capacity : null} warnFrom={2}>
          {count(replica.adapters ?? 0)} of {count(replica.adapter_capacity ?? 0)}
        </Meter>
        {memory && <Meter label="GPU memory" share={memory.used / memory.total} warnFrom={0.98}>{bytes(memory.used)} of {bytes(memory.total)}</Meter>}
      </div>
      <dl class="facts small">
        <dt>Prefix hits</dt>
        <dd>{replica.prefix_hit_rate === null ? "no prompts yet" : `${percent(replica.prefix_hit_rate)} of prompt tokens`}</dd>
        <dt>Sampled</dt>
        <dd>{compact(replica.tokens_sampled ?? 0)} tokens, from {compact(replica.tokens_prompt ?? 0)} of prompts</dd>
        <dt>Versions</dt>
        <dd><Versions replica={replica} /></dd>
      </dl>
    </>
  );
}

function Versions({ replica }: { replica: Replica }) {
  const shown = replica.own_versions.slice(0, MAX_VERSIONS);
  const hidden = replica.own_versions.length - shown.length;
  const others = replica.other_versions ?? 0;
  return (
    <ul class="plain chips">
      {shown.map((version) => (
        <li key={`${version.model_id}:${version.step}`}>
          <a href={href(`/models/${segment(version.model_id)}/versions`)} title={plain(version.model)}>
            <Text value={version.model.split("/").slice(1).join("/")} max={28} /> v{version.step}
          </a>
        </li>
      ))}
      {hidden > 0 && <li class="muted">{count(hidden)} more of yours</li>}
      <li class="muted">{shown.length ? "and " : ""}{count(others)} of others</li>
    </ul>
  );
}

function EndedReplicas({ ended, restarts }: { ended: Ended[]; restarts: number }) {
  return (
    <details class="ended" open={restarts > 0}>
      <summary>
        {restarts === 0 ? "No restart" : restarts === 1 ? "1 restart" : `${restarts} restarts`} among the last {ended.length} engines that ended
      </summary>
      <ul class="plain lives" aria-label="Engines that ended">
        {ended.map((life) => (
          <li key={life.id}>
            <Badge tone={life.ending === "stopped" ? "neutral" : "bad"}>{life.ending}</Badge>{" "}
            {life.ended_at && <span class="muted"><Time at={life.ended_at} />: </span>}
            <Text value={life.sentence} max={1000} />{" "}
            <span class="muted mono"><Text value={life.id} max={40} /></span> <span class="muted">on <Text value={life.node} max={60} /></span>
          </li>
        ))}
      </ul>
    </details>
  );
}
