/** The settings of a base model, and how the memory of its GPUs is divided. */
import { bytes, count } from "../../components/format";
import { Text } from "../../components/Text";
import type { Engines, Learners, MemoryPlan } from "./types";

export function Settings({ engines, learners }: { engines: Engines | undefined; learners: Learners | undefined }) {
  const plan = engines?.replicas.find((replica) => replica.memory_plan)?.memory_plan ?? null;
  return (
    <details class="settings">
      <summary>Settings and memory plan</summary>
      <div class="grid">
        {engines && <EngineFacts settings={engines.settings} />}
        {learners && <LearnerFacts settings={learners.settings} />}
        {engines && (plan ? <Plan plan={plan} /> : <p class="muted">There is no memory plan on a CPU.</p>)}
      </div>
    </details>
  );
}

function EngineFacts({ settings }: { settings: Engines["settings"] }) {
  return (
    <dl class="facts">
      <dt>Replicas</dt><dd>{settings.replicas}{settings.tensor_parallel_size > 1 ? `, each on ${settings.tensor_parallel_size} GPUs` : ""}</dd>
      <dt>Longest sequence</dt><dd>{tokens(settings.max_model_len)}</dd>
      <dt>Largest batch</dt><dd>{settings.max_num_seqs === null ? "vLLM's choice" : `${count(settings.max_num_seqs)} requests`}</dd>
      <dt>Weights</dt><dd>{settings.dtype}</dd>
      <dt>Versions</dt><dd>up to {count(settings.max_cpu_loras)} loaded{settings.max_loras ? `, ${settings.max_loras} in a batch` : ""}</dd>
      {settings.sleep && <><dt>Sleep</dt><dd>while learners use the GPU</dd></>}
    </dl>
  );
}

function LearnerFacts({ settings }: { settings: Learners["settings"] }) {
  return (
    <dl class="facts">
      <dt>Learners</dt><dd>{settings.count}, device {settings.device}{settings.shard > 1 ? `, ${settings.shard} share the weights` : ""}</dd>
      <dt>Jobs at once</dt><dd>{settings.jobs_at_once}</dd>
      <dt>Weights</dt><dd>{settings.dtype}</dd>
      <dt>LoRA</dt><dd>rank {settings.lora_r}, alpha {settings.lora_alpha}</dd>
      <dt>Adapted</dt><dd><Text value={settings.lora_target_modules.join(", ")} /></dd>
    </dl>
  );
}

function tokens(value: number | null): string {
  return value === null ? "the model's own" : `${count(value)} tokens`;
}

function Plan({ plan }: { plan: MemoryPlan }) {
  const parts = [
    { name: "learner", size: plan.learner ?? 0, series: 1 },
    { name: "engine", size: plan.engine ?? 0, series: 2 },
    { name: "KV cache", size: plan.kv_cache, series: 3 },
  ].filter((part) => part.size > 0);
  return (
    <figure class="plan">
      <figcaption>{bytes(plan.gpu)} of a GPU{plan.takes_turns ? ", used by turns" : ""}; the KV cache holds {count(plan.kv_tokens)} tokens</figcaption>
      <div class="plan-bar" aria-hidden="true">
        {parts.map((part) => (
          <span key={part.name} style={{ width: `${Math.min(100, (100 * part.size) / plan.gpu)}%`, background: `var(--series-${part.series})` }} />
        ))}
      </div>
      <ul class="plain chips">
        {parts.map((part) => (
          <li key={part.name}><span class="swatch" style={{ background: `var(--series-${part.series})` }} /> {part.name} {bytes(part.size)}</li>
        ))}
      </ul>
    </figure>
  );
}
