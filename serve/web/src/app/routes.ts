/** The one list of views. The first route that fits is shown; each view's code is loaded when it is first shown. */
import { alertCount } from "./alertCount";
import type { Route } from "./router";

export const routes: Route[] = [
  {
    path: "/",
    title: "Overview",
    load: async () => (await import("../views/overview/Overview")).Overview,
    nav: { label: "Overview", group: "Train", shortcut: "o" },
  },
  {
    path: "/cluster",
    title: "Engines and learners",
    load: async () => (await import("../views/cluster/Cluster")).Cluster,
    role: "train",
    nav: { label: "Cluster", group: "Operate", shortcut: "c" },
  },
  {
    path: "/trajectories/:id",
    title: "Trajectory",
    load: async () => (await import("../views/trajectory/Trajectory")).Trajectory,
    role: "train",
  },
  {
    path: "/jobs/:id/groups/:group",
    title: "Group",
    load: async () => (await import("../views/group/Group")).Group,
    role: "train",
  },
  {
    path: "/trajectories",
    title: "Find trajectories",
    load: async () => (await import("../views/find/Find")).Find,
    role: "train",
    nav: { label: "Find", group: "Look", shortcut: "f" },
  },
  {
    path: "/models/:id/groups",
    title: "Groups of a version",
    load: async () => (await import("../views/groups/Groups")).Groups,
    role: "train",
  },
  {
    path: "/alerts",
    title: "Alerts",
    role: "train",
    load: async () => (await import("../views/alerts/Alerts")).Alerts,
    nav: { label: "Alerts", group: "Operate", shortcut: "a", count: () => alertCount.value?.unacknowledged ?? 0 },
  },
  {
    path: "/models/:id",
    title: "Model",
    role: "train",
    load: async () => (await import("../views/model/Model")).Model,
  },
  {
    path: "/compare",
    title: "Compare models",
    role: "train",
    load: async () => (await import("../views/compare/Compare")).Compare,
  },
  {
    path: "/jobs",
    title: "Jobs",
    role: "train",
    load: async () => (await import("../views/jobs/Jobs")).Jobs,
    nav: { label: "Jobs", group: "Train", shortcut: "j" },
  },
  {
    path: "/jobs/:id",
    title: "Job",
    role: "train",
    load: async () => (await import("../views/jobs/Job")).Job,
  },
  {
    path: "/keys",
    title: "Keys",
    role: "admin",
    load: async () => (await import("../views/keys/Keys")).Keys,
    nav: { label: "Keys", group: "Account", shortcut: "k" },
  },
  {
    path: "/start",
    title: "Start",
    load: async () => (await import("../views/start/Start")).Start,
    nav: { label: "Start", group: "Account", shortcut: "s" },
  },
  {
    path: "/models/:id/versions",
    title: "Versions",
    role: "train",
    load: async () => (await import("../views/versions/Versions")).Versions,
  },
  {
    path: "/models/:id/settings",
    title: "Model",
    role: "train",
    load: async () => (await import("../views/models/Settings")).Settings,
  },
  {
    path: "/playground",
    title: "Playground",
    load: async () => (await import("../views/playground/Playground")).Playground,
    nav: { label: "Playground", group: "Look", shortcut: "p" },
  },
  {
    path: "/configurations",
    title: "Saved configurations",
    role: "train",
    load: async () => (await import("../views/configurations/Configurations")).Configurations,
    nav: { label: "Configurations", group: "Operate", shortcut: "c" },
  },
  {
    path: "/configurations/:id",
    title: "Configuration",
    role: "train",
    load: async () => (await import("../views/configurations/Configuration")).Configuration,
  },
  {
    path: "/user-jobs/:id",
    title: "Job of a configuration",
    role: "train",
    load: async () => (await import("../views/configurations/UserJob")).UserJob,
  },
  {
    path: "/fine-tuning",
    title: "Fine-tuning",
    role: "train",
    load: async () => (await import("../views/finetuning/FineTuning")).FineTuning,
    nav: { label: "Fine-tuning", group: "Train", shortcut: "f" },
  },
  {
    path: "/fine-tuning/:id",
    title: "Fine-tuning job",
    role: "train",
    load: async () => (await import("../views/finetuning/FineTuningJob")).FineTuningJobView,
  },
];
