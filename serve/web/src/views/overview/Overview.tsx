/** All models of the entity. */
import { Table } from "../../components/Table";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Text } from "../../components/Text";
import { Time } from "../../components/Time";
import { href, segment } from "../../app/router";
import { usePages } from "../../app/resource";

interface Model {
  id: string;
  project: string;
  name: string;
  base_model: string;
  step: number;
  created_at: string;
}

export function Overview() {
  const models = usePages<Model>("v1/preview/models", { order: "desc" });
  return (
    <>
      <h1>Models</h1>
      {models.error && <ErrorBox error={models.error} onRetry={models.reload} />}
      {!models.loading && !models.error && models.items.length === 0 && (
        <Empty title="This entity has no models yet">Register one and train it: <a href="#/start">Start</a> has the lines to copy.</Empty>
      )}
      {models.items.length > 0 && (
        <Table
          label="Models"
          rows={models.items}
          rowKey={(model) => model.id}
          hasMore={models.hasMore}
          onEnd={models.more}
          columns={[
            { key: "name", label: "Model", cell: (model) => <a href={href(`/models/${segment(model.id)}`)}><Text value={`${model.project}/${model.name}`} max={60} /></a> },
            { key: "base", label: "Base model", wide: true, cell: (model) => <Text value={model.base_model} max={40} /> },
            { key: "step", label: "Version", align: "right", cell: (model) => model.step },
            { key: "created", label: "Registered", cell: (model) => <Time at={model.created_at} /> },
          ]}
        />
      )}
    </>
  );
}
