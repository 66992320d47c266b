/** The rows of a tree of versions. Runs open in place, and so do the models that were forked from a version. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { get, type Page } from "../../app/api";
import { useGet, usePages } from "../../app/resource";
import { href, segment } from "../../app/router";
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loaded } from "../../components/Loaded";
import { Loading } from "../../components/Loading";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { count, number } from "../../components/format";
import type { Model } from "../models/types";
import { Graph, PassingLines, graphWidth } from "./Graph";
import { lanesOf, type Lanes } from "./lanes";
import type { TreeItem, TreeParent, TreeVersion } from "./types";

interface TreeProps {
  model: Model;
  selected: number | null;
  onSelect: (step: number) => void;
  onLoaded?: (versions: TreeVersion[]) => void;
  /** The tree is loaded again when this changes. */
  round?: number;
}

const PAGE = 100;

export function Tree({ model, selected, onSelect, onLoaded, round = 0 }: TreeProps) {
  const path = `v1/preview/models/${segment(model.id)}/tree`;
  const tree = usePages<TreeItem>(path, {}, PAGE);
  const [opened, setOpened] = useState<ReadonlyMap<number, TreeItem>>(new Map());
  const [error, setError] = useState<Error | null>(null);
  const items = useMemo(() => tree.items.flatMap((item) => expanded(item, opened)), [tree.items, opened]);
  const lanes = useMemo(() => lanesOf(items, model.id), [items, model.id]);
  const width = Math.min(8, Math.max(1, ...lanes.map((one) => one.width)));
  useEffect(() => {
    if (round > 0) tree.reload();
  }, [round]);
  useEffect(() => onLoaded?.(items.flatMap((item) => (item.version ? [item.version] : []))), [items]);

  /** Load the newest versions of a run; what remains of it stays a run. */
  async function open(run: TreeItem): Promise<void> {
    setError(null);
    try {
      const page = await get<Page<TreeItem>>(path, { collapse: false, after: `${model.id}:${run.last_step + 1}`, limit: Math.min(PAGE, run.count) });
      setOpened((old) => new Map([...old, ...page.data.map((item) => [item.first_step, item] as const)]));
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
  }

  if (tree.items.length === 0) return tree.error ? <ErrorBox error={tree.error} onRetry={tree.reload} /> : <Loading />;
  const oldest = items[items.length - 1];
  return (
    <div class="version-tree">
      {error && <ErrorBox error={error} />}
      {model.step === 0 && <Empty title="No version was trained yet">Version 0 is the base model with an adapter that changes nothing. <a href="#/start">Start</a> shows how to train.</Empty>}
      <ol class="plain" aria-label="Versions, the newest first" style={{ "--lanes": `${graphWidth(width)}px` }}>
        {items.map((item, index) => {
          const lane = lanes[index] as Lanes;
          return (
            <li key={item.id} class={item.state === "live" ? "version-item" : "version-item gone"}>
              {item.version?.forks.map((fork) => (
                <div key={fork.model_id} class="version-fork">
                  <PassingLines lanes={lane} width={width} before />
                  <Fork id={fork.model_id} name={fork.model} deleted={fork.deleted} />
                </div>
              ))}
              <div class={item.version && item.first_step === selected ? "version-row selected" : "version-row"}>
                <Graph lanes={lane} isRun={item.count > 1} isGone={item.state !== "live"} width={width} />
                {item.version ? <VersionRow item={item} version={item.version} onSelect={onSelect} /> : <RunRow item={item} onOpen={() => void open(item)} />}
              </div>
              {item.parent?.model && (
                <div class="version-fork">
                  <PassingLines lanes={lane} width={width} before={false} />
                  <Ancestor parent={item.parent} step={item.first_step} />
                </div>
              )}
            </li>
          );
        })}
      </ol>
      {tree.hasMore && <button type="button" onClick={tree.more} disabled={tree.loading}>Show versions before {oldest?.first_step}</button>}
      {tree.error && <ErrorBox error={tree.error} onRetry={tree.reload} />}
    </div>
  );
}

/** A run whose newest versions are loaded: those, and the rest as a shorter run. */
function expanded(run: TreeItem, opened: ReadonlyMap<number, TreeItem>): TreeItem[] {
  const loaded: TreeItem[] = [];
  let step = run.last_step;
  for (let item = opened.get(step); item && run.count > 1 && step >= run.first_step; item = opened.get(step)) {
    loaded.push(item);
    step = item.parent?.step ?? -1; // within a run, each version follows the one before
  }
  const rest = run.count - loaded.length;
  if (loaded.length === 0) return [run];
  return rest > 0 ? [...loaded, { ...run, id: `${run.id} rest`, last_step: step, count: rest }] : loaded;
}

function VersionRow({ item, version, onSelect }: { item: TreeItem; version: TreeVersion; onSelect: (step: number) => void }) {
  const shown = version.metrics["reward"] === undefined ? "loss" : "reward";
  const value = version.metrics[shown];
  return (
    <>
      <button type="button" class="version-name" onClick={() => onSelect(version.step)}>Version {version.step}</button>
      <span class="version-badges">
        {version.is_newest && <Badge tone="info">newest</Badge>}
        {version.is_best && <Badge tone="good">best</Badge>}
        {version.kept_at && <Badge tone="warn">kept</Badge>}
        {version.origin === "import" && <Badge>imported</Badge>}
        {version.checkpoint_name && <Badge>{version.checkpoint_name}</Badge>}
        {version.origin === "fork" && <Badge>forked</Badge>}
        {version.job_kind && version.job_kind !== "rl" && <Badge>{version.job_kind}</Badge>}
        {item.state !== "live" && <Badge>{item.state}</Badge>}
        {item.reason && <span class="version-reason muted">{item.reason}</span>}
        {version.has_optimizer && <span class="muted wide" title="Training that starts from it continues with its optimizer state">optimizer</span>}
      </span>
      <span class="version-reward">{value === undefined ? <span class="muted">–</span> : <>{shown} <strong>{number(value, 3)}</strong></>}</span>
      <span class="version-job wide">{version.job_id && <a href={href(`/jobs/${segment(version.job_id)}`)}>job {version.job_id.slice(0, 8)}</a>}</span>
      <span class="version-time">{item.reason && version.created_at === null ? null : <Time at={version.created_at} />}</span>
    </>
  );
}

function RunRow({ item, onOpen }: { item: TreeItem; onOpen: () => void }) {
  const rewards = item.lowest_reward === null ? null : item.lowest_reward === item.highest_reward ? number(item.lowest_reward, 3) : `${number(item.lowest_reward, 3)} to ${number(item.highest_reward, 3)}`;
  return (
    <>
      <button type="button" class="version-name" onClick={onOpen}>Versions {item.first_step} to {item.last_step}</button>
      <span class="version-badges">
        <span class="muted version-count">{count(item.count)} versions</span>
        {item.state !== "live" && <Badge>{item.state}</Badge>}
        {item.reason && <span class="version-reason muted">{item.reason}</span>}
      </span>
      <span class="version-reward">{rewards && <>reward {rewards}</>}</span>
    </>
  );
}

function Fork({ id, name, deleted }: { id: string; name: string; deleted: boolean }) {
  const [open, setOpen] = useState(false);
  return (
    <div class="version-branch">
      <div class="row">
        <span>Forked as</span>
        {deleted ? <><Text value={name} max={80} /> <span class="muted">(deleted)</span></> : (
          <>
            <a href={href(`/models/${segment(id)}/versions`)}><Text value={name} max={80} /></a>
            <button type="button" class="quiet" aria-expanded={open} onClick={() => setOpen(!open)}>{open ? "Hide its versions" : "Show its versions"}</button>
          </>
        )}
      </div>
      {open && <Nested id={id} />}
    </div>
  );
}

function Ancestor({ parent, step }: { parent: TreeParent; step: number }) {
  const [open, setOpen] = useState(false);
  return (
    <div class="version-branch">
      <div class="row">
        {step === 0 ? "The model begins with" : `Version ${step} is`} version {parent.step} of{" "}
        {parent.exists ? (
          <>
            <a href={href(`/models/${segment(parent.model_id)}/versions`, { step: parent.step })}><Text value={parent.model ?? parent.model_id} max={80} /></a>
            <button type="button" class="quiet" aria-expanded={open} onClick={() => setOpen(!open)}>{open ? "Hide its versions" : "Show its versions"}</button>
          </>
        ) : <><Text value={parent.model ?? parent.model_id} max={80} /> <span class="muted">(deleted; the files stay while this model needs them)</span></>}
      </div>
      {open && <Nested id={parent.model_id} selected={parent.step} />}
    </div>
  );
}

/** The tree of another model. Its versions open in their own view. */
function Nested({ id, selected = null }: { id: string; selected?: number | null }) {
  const model = useGet<Model>(`v1/preview/models/${segment(id)}`);
  return (
    <div class="version-nested">
      <Loaded of={model}>{(found) => <Tree model={found} selected={selected} onSelect={(step) => (location.hash = href(`/models/${segment(id)}/versions`, { step }))} />}</Loaded>
    </div>
  );
}
