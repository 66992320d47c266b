/** What a configuration, or a run of a job, consists of: code, data, parameters, resources. */
import { Text } from "../../components/Text";
import type { RunSettings } from "./types";

const SHOWN: [string, string][] = [
  ["app_url", "Code"],
  ["boot_file_url", "Boot file"],
  ["data_url", "Data"],
  ["dataset_id", "Dataset"],
  ["dataset_version_id", "Dataset version"],
  ["train_url", "Output"],
  ["log_url", "Logs go to"],
];

export function RunFacts({ settings }: { settings: RunSettings }) {
  const gpus = settings.gpu_num ? `, ${settings.gpu_num} GPU ${settings.gpu_type ?? ""}` : "";
  const spec = settings.spec_code ? `${settings.spec_code}: ${settings.cpu} CPU${gpus}` : `specification ${settings.spec_id ?? "?"}, which the cluster doesn't have now`;
  return (
    <>
      <dl class="facts">
        <dt>Runs</dt>
        <dd>{settings.model_id === null ? <Text value={`${settings.engine_name ?? ""} ${settings.engine_version ?? ""}`} /> : `built-in algorithm ${settings.model_id}`}</dd>
        {SHOWN.map(([name, label]) => {
          const value = settings[name];
          return typeof value === "string" && value ? [<dt key={name}>{label}</dt>, <dd key={`${name} value`}><code><Text value={value} /></code></dd>] : null;
        })}
        <dt>Workers</dt>
        <dd>{settings.worker_server_num ?? 1} with <Text value={spec} /></dd>
      </dl>
      {settings.parameter && settings.parameter.length > 0 && (
        <>
          <h3>Parameters</h3>
          <div class="table-box parameters" tabIndex={0} role="region" aria-label="Parameters">
            <table>
              <tbody>{settings.parameter.map(({ label, value }) => <tr key={label}><td><Text value={label} max={80} /></td><td><code><Text value={typeof value === "string" ? value : JSON.stringify(value)} max={200} /></code></td></tr>)}</tbody>
            </table>
          </div>
        </>
      )}
    </>
  );
}
