/** The key's own address, and the lines to copy for each client. */
import { useState } from "preact/hooks";
import { base } from "../../app/api";
import { useGet } from "../../app/resource";
import { href, setQuery, type ViewProps } from "../../app/router";
import { may, session } from "../../app/session";
import { Code } from "../../components/Code";
import { CopyButton } from "../../components/CopyButton";
import { ErrorBox } from "../../components/ErrorBox";
import { Tabs } from "../../components/Tabs";
import { Text } from "../../components/Text";
import { snippets } from "./snippets";

interface Names {
  data: { id: string; owned_by: string }[];
}

const HIDDEN = "tdm_...";
const MAX_NAMES = 200;

export function Start({ query }: ViewProps) {
  const names = useGet<Names>("v1/models");
  const [withKey, setWithKey] = useState(false);
  const all = names.data?.data ?? [];
  const baseModels = all.filter((name) => name.owned_by === "tandem").map((name) => name.id);
  const baseModel = baseModels[0] ?? "tandem/tiny";
  const model = query.get("model") ?? baseModel;
  const chosen = snippets.find((snippet) => snippet.id === query.get("client")) ?? snippets[0];
  const url = base.href.replace(/\/$/, "");
  const key = withKey ? (session.value?.key ?? HIDDEN) : HIDDEN;
  const others = all.map((name) => name.id).slice(0, MAX_NAMES);
  if (!chosen) return null;
  return (
    <>
      <h1>Start</h1>
      <dl class="facts">
        <dt>Service</dt>
        <dd><code>{url}</code> <CopyButton text={url} of="the service's address" /></dd>
        <dt>For OpenAI clients</dt>
        <dd><code>{`${url}/v1`}</code> <CopyButton text={`${url}/v1`} of="the address for OpenAI clients" /></dd>
        <dt>Key</dt>
        <dd>
          <Text value={session.value?.name ?? ""} />, role {session.value?.role}, of entity <Text value={session.value?.entity ?? ""} />
        </dd>
      </dl>
      {!may("train") && <p class="note">This key has role infer: it may sample. Lines that train need a key with role train.</p>}
      {names.error && <ErrorBox error={names.error} onRetry={names.reload} />}
      <Tabs
        label="Clients"
        tabs={snippets.map((snippet) => ({
          label: snippet.label,
          href: href("/start", { client: snippet.id, model: query.get("model") }),
          current: snippet.id === chosen.id,
        }))}
      />
      <div class="row">
        <label>
          Model{" "}
          <select value={model} onChange={(event) => setQuery({ model: event.currentTarget.value })}>
            {(others.includes(model) ? others : [model, ...others]).map((name) => <option key={name} value={name}>{name}</option>)}
          </select>
        </label>
        <label>
          <input type="checkbox" checked={withKey} onChange={(event) => setWithKey(event.currentTarget.checked)} /> With my key in the lines
        </label>
      </div>
      <p class="muted">{chosen.about}</p>
      {chosen.install && <Code label={`Installation of ${chosen.label}`} text={chosen.install} />}
      <div class="snippet">
        <Code label={`Lines for ${chosen.label}`} text={chosen.code({ url, key, model, baseModel })} />
      </div>
      <p class="muted">
        All routes are in the <a href="docs">API reference</a>.{" "}
        {may("admin") ? <>Create a key for each program under <a href={href("/keys")}>Keys</a>.</> : "An admin of your entity creates further keys."}
      </p>
    </>
  );
}
