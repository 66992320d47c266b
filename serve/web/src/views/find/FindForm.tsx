/** The form of Find. Its state is the address, so that a search can be sent to a colleague. */
import { useEffect, useState } from "preact/hooks";
import { Field } from "../../components/Field";
import { setQuery } from "../../app/router";
import { FIELDS, SORTS, type Field as Name, type Filters } from "./filters";

export function FindForm({ filters }: { filters: Filters }) {
  const [draft, setDraft] = useState(filters);
  const applied = JSON.stringify(filters);
  useEffect(() => setDraft(filters), [applied]);
  const set = (name: Name, value: string) => setDraft((old) => ({ ...old, [name]: value }));
  const input = (name: Name, placeholder = "") => (
    <input
      name={name}
      type="text"
      placeholder={placeholder}
      value={draft[name]}
      onInput={(event) => set(name, event.currentTarget.value)}
    />
  );
  const numeric = (name: Name, placeholder = "") => (
    <input
      name={name}
      type="number"
      step="any"
      placeholder={placeholder}
      value={draft[name]}
      onInput={(event) => set(name, event.currentTarget.value)}
    />
  );
  const from = (["job", "log", "group"] as const).filter((name) => filters[name]);
  return (
    <form
      class="find-form"
      role="search"
      onSubmit={(event) => {
        event.preventDefault();
        setQuery(draft);
      }}
    >
      <div class="find-text">
        <Field label="Text">{input("text", "in messages, tool calls, errors and metadata")}</Field>
      </div>
      <Field label="Model">{input("model", "project/name")}</Field>
      <Field label="Version">{numeric("step", "any")}</Field>
      <Field label="Split">{input("split", "train, eval, …")}</Field>
      <Field label="Reward from">{numeric("reward_min")}</Field>
      <Field label="Reward to">{numeric("reward_max")}</Field>
      <Field label="Metadata">{input("metadata", "task=7, seed=1")}</Field>
      <Field label="Metrics">{input("metrics", "length<=100")}</Field>
      <Field label="Order">
        <select value={draft.sort || "newest"} onChange={(event) => set("sort", event.currentTarget.value)}>
          {Object.entries(SORTS).map(([name, sort]) => (
            <option key={name} value={name} disabled={!sort.withText && draft.text !== ""}>{sort.label}</option>
          ))}
        </select>
      </Field>
      <div class="find-actions">
        <label class="check">
          <input type="checkbox" checked={draft.errors !== ""} onChange={(event) => set("errors", event.currentTarget.checked ? "1" : "")} /> Errors only
        </label>
        <button type="submit" class="primary">Find</button>
        <button type="button" class="quiet" onClick={() => setQuery(Object.fromEntries(FIELDS.map((name) => [name, null])))}>Clear</button>
      </div>
      {from.length > 0 && (
        <p class="find-from muted">
          Within {from.map((name) => (
            <button key={name} type="button" class="quiet" title="Search everywhere" onClick={() => setQuery({ [name]: null, ...(name === "group" ? {} : { group: null }) })}>
              {name} <code>{filters[name].slice(0, 13)}</code> ✕
            </button>
          ))}
        </p>
      )}
    </form>
  );
}
