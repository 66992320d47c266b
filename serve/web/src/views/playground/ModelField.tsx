/** Chooses a model and a version by its name, with the models of the key as suggestions. */
import { useId } from "preact/hooks";
import { Field } from "../../components/Field";

interface ModelFieldProps {
  label: string;
  value: string;
  suggestions: readonly string[];
  onChange: (name: string) => void;
}

/** Split "a/b/c:step3" into name and version; "" is the newest. */
export function split(value: string): { name: string; step: string } {
  const found = /^(.*):step(\d*)$/.exec(value);
  return found ? { name: found[1] ?? "", step: found[2] ?? "" } : { name: value, step: "" };
}

export function ModelField({ label, value, suggestions, onChange }: ModelFieldProps) {
  const list = useId();
  const { name, step } = split(value);
  const joined = (model: string, version: string): string => (version === "" ? model : `${model}:step${version}`);
  const hasVersions = name.includes("/") && name.split("/").length === 3;
  return (
    <div class="model-field">
      <Field label={label}>
        <input
          name="model"
          list={list}
          value={name}
          spellcheck={false}
          placeholder="entity/project/name"
          onChange={(event) => {
            const typed = split(event.currentTarget.value.trim());
            onChange(joined(typed.name, typed.step || (typed.name === name ? step : "")));
          }}
        />
      </Field>
      <datalist id={list}>{suggestions.map((one) => <option key={one} value={one} />)}</datalist>
      <Field label="Version">
        <input
          name="version"
          type="number"
          min={0}
          value={step}
          disabled={!hasVersions}
          placeholder="newest"
          onChange={(event) => onChange(joined(name, event.currentTarget.value))}
        />
      </Field>
    </div>
  );
}
