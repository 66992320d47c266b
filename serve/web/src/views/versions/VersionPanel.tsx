/** One version: where it comes from, its metrics and files, and what can be done with it. */
import { useState } from "preact/hooks";
import { del, get, put, type Page } from "../../app/api";
import { useGet, useResource } from "../../app/resource";
import { href, segment } from "../../app/router";
import { ActionButton } from "../../components/ActionButton";
import { CopyButton } from "../../components/CopyButton";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { bytes, number } from "../../components/format";
import { saveFile } from "../../components/saveFile";
import { LoraFacts } from "../models/Settings";
import { nameOf, type Model } from "../models/types";
import { DeleteVersion } from "./DeleteVersion";
import { ForkVersion } from "./ForkVersion";
import type { TreeItem, TreeVersion } from "./types";

interface PanelProps {
  model: Model;
  step: number;
  /** Called when the tree has to be loaded again. */
  onChange: () => void;
  onClose: () => void;
}

export function VersionPanel(props: PanelProps) {
  const { model, step, onClose } = props;
  const path = `v1/preview/models/${segment(model.id)}/tree`;
  const found = useResource(
    (signal) => get<Page<TreeItem>>(path, { collapse: false, after: `${model.id}:${step + 1}`, limit: 1 }, { signal }),
    [path, step],
  );
  const item = found.data?.data[0];
  const version = item?.first_step === step ? item.version : null;
  return (
    <aside class="card version-panel" aria-label={`Version ${step}`}>
      <header class="row">
        <h2 class="grow">Version {step}</h2>
        <button type="button" class="quiet" onClick={onClose}>Close</button>
      </header>
      {found.error && <ErrorBox error={found.error} onRetry={found.reload} />}
      {!found.data && !found.error && <Loading />}
      {found.data && !version && <Empty title={`There is no version ${step}`}>Its number was passed over, or hasn't been trained yet.</Empty>}
      {item && version && (item.state === "live" ? <Live {...props} item={item} version={version} onChange={() => (found.reload(), props.onChange())} /> : <Gone item={item} version={version} />)}
    </aside>
  );
}

function Gone({ item, version }: { item: TreeItem; version: TreeVersion }) {
  return (
    <>
      <p class="note">{item.reason} Completions from it are refused, and its number is never used again.</p>
      <dl class="facts"><Came item={item} version={version} /></dl>
      <Metrics metrics={version.metrics} />
    </>
  );
}

interface Sizes {
  adapter_bytes: number;
  optimizer_bytes: number;
}

function Live({ model, step, item, version, onChange, onClose }: PanelProps & { item: TreeItem; version: TreeVersion }) {
  const sizes = useGet<Sizes>(`v1/preview/models/${segment(model.id)}/checkpoints/${step}`);
  const [dialog, setDialog] = useState<"" | "fork" | "delete">("");
  const name = nameOf(model, step);
  const keep = `v1/preview/models/${segment(model.id)}/checkpoints/${step}/keep`;
  return (
    <>
      <p class="version-use"><code><Text value={name} /></code> <CopyButton text={name} label="Use this name" /></p>
      <div class="row">
        <ActionButton onAction={() => saveFile(`/v1/preview/models/${model.id}/versions/${step}/adapter`)}>Download the adapter</ActionButton>
        <a class="button" href={href("/playground", { a: name })}>Chat</a>
        {step !== model.step && <a class="button" href={href("/playground", { a: name, b: nameOf(model, model.step) })}>Compare with newest</a>}
        {step > 0 && <a class="button" href={href(`/models/${segment(model.id)}/groups`, { step })}>Groups</a>}
      </div>
      <div class="row">
        {step > 0 && (version.kept_at ? (
          <ActionButton onAction={async () => (await del(keep), onChange())}>Release</ActionButton>
        ) : (
          <ActionButton onAction={async () => (await put(keep, undefined), onChange())}>Keep</ActionButton>
        ))}
        <button type="button" onClick={() => setDialog("fork")}>Fork from here…</button>
        {step > 0 && <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete…</button>}
      </div>
      <dl class="facts">
        <Came item={item} version={version} />
        {version.kept_at && <><dt>Kept</dt><dd>since <Time at={version.kept_at} />: retention and deletions pass it over</dd></>}
        <dt>Adapter</dt>
        <dd>{sizes.data ? bytes(sizes.data.adapter_bytes) : sizes.error ? <Text value={sizes.error.message} /> : "…"}</dd>
        <dt>Optimizer state</dt>
        <dd>{version.has_optimizer ? <>there{sizes.data && `, ${bytes(sizes.data.optimizer_bytes)}`}</> : "none: training from here begins with a new optimizer"}</dd>
        <LoraFacts model={model} />
      </dl>
      <Metrics metrics={version.metrics} />
      {dialog === "fork" && <ForkVersion model={model} version={version} onClose={() => setDialog("")} />}
      {dialog === "delete" && (
        <DeleteVersion
          model={model}
          version={version}
          onClose={() => setDialog("")}
          onDeleted={() => {
            onClose();
            onChange();
          }}
        />
      )}
    </>
  );
}

const ORIGINS: Record<TreeVersion["origin"], string> = {
  initial: "the untrained adapter",
  job: "a training job",
  run: "a client of the Tinker API",
  import: "an imported adapter",
  fork: "another model's version",
  unknown: "not known any more",
};

function Came({ item, version }: { item: TreeItem; version: TreeVersion }) {
  const parent = item.parent;
  return (
    <>
      <dt>Made by</dt>
      <dd>{version.job_id ? <a href={href(`/jobs/${segment(version.job_id)}`)}>{version.job_kind} job {version.job_id.slice(0, 8)}</a> : ORIGINS[version.origin]}</dd>
      {version.run_id && (
        <>
          <dt>Run</dt>
          <dd><Text value={version.run_id} max={60} />{version.checkpoint_name && <>, as <Text value={version.checkpoint_name} max={60} /></>}</dd>
        </>
      )}
      {parent && (
        <>
          <dt>Follows</dt>
          <dd>
            <a href={href(`/models/${segment(parent.model_id)}/versions`, { step: parent.step })}>version {parent.step}</a>
            {parent.model && <> of <Text value={parent.model} max={60} /></>}
          </dd>
        </>
      )}
      <dt>Created</dt>
      <dd><Time at={version.created_at} /></dd>
      {version.digest && <><dt>Digest</dt><dd><code>{version.digest.slice(0, 16)}…</code> <CopyButton text={version.digest} of="the digest" /></dd></>}
      {version.imported_from && <><dt>Imported</dt><dd><Text value={JSON.stringify(version.imported_from)} max={300} /></dd></>}
    </>
  );
}

const FIRST = ["reward", "reward_std_dev", "loss", "entropy", "kl", "learning_rate"];

function Metrics({ metrics }: { metrics: Record<string, number> }) {
  const names = Object.keys(metrics).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  if (names.length === 0) return null;
  return (
    <>
      <h3>Metrics</h3>
      <div class="table-box version-metrics" tabIndex={0} role="region" aria-label="Metrics">
        <table>
          <tbody>{names.map((name) => <tr key={name}><td><Text value={name} max={60} /></td><td class="right">{number(metrics[name])}</td></tr>)}</tbody>
        </table>
      </div>
    </>
  );
}

function rank(name: string): number {
  const found = FIRST.indexOf(name);
  return found < 0 ? FIRST.length : found;
}
