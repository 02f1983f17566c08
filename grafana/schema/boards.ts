// What a dashboard of ours may be: Grafana's own types, closed. Grafana takes an option
// that it does not know without a word and does not use it, so every panel is held
// against the options of its kind and nothing beside them.

import type {
  AnnotationQuery,
  Dashboard,
  DashboardLink,
  DataQuery,
  DataTransformerConfig,
  FieldConfig,
  GraphFieldConfig,
  GridPos,
  RowPanel,
  TableFieldOptions,
  VariableModel,
} from "@grafana/schema";
import type { Options as BarGaugeOptions } from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type { FieldConfig as HeatmapField, Options as HeatmapOptions } from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type { Options as TableOptions } from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type { Options as TimeSeriesOptions } from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// An enum of TypeScript is not its value; a file has values.
type Json<T> = unknown extends T ? unknown
  : T extends string ? `${T}`
  : T extends number ? (`${T}` extends `${infer N extends number}` ? N : never)
  : T extends boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[]
  : { [K in keyof T]: Json<T[K]> };

type Needed<T, K extends keyof T> = T & Required<Pick<T, K>>;

// @grafana/schema has no type for Prometheus' queries: its data source's own.
type Source = { type: "prometheus"; uid: "${datasource}" };
interface Query extends Omit<Json<DataQuery>, "datasource"> {
  datasource: Source;
  editorMode: "code";
  expr: string;
  legendFormat: string;
  format: "time_series" | "table" | "heatmap";
  instant: boolean;
  range: boolean;
  exemplar: boolean;
}

interface Shown<Kind extends string, Options, Field> {
  id: number;
  type: Kind;
  title: string;
  description: string;
  datasource: Source;
  gridPos: Json<GridPos>;
  options: Json<Options>;
  targets: Query[];
  transformations?: Json<DataTransformerConfig>[];
  fieldConfig: {
    defaults: Needed<Json<Omit<FieldConfig, "custom">>, "unit" | "noValue"> & { custom?: Json<Field> };
    overrides: {
      matcher: { id: "byName"; options: string };
      properties: (
        | { id: "unit"; value: string }
        | { id: "color"; value: Json<NonNullable<FieldConfig["color"]>> }
      )[];
    }[];
  };
}

type Panel =
  | Shown<"stat", StatOptions, {}>
  | Shown<"timeseries", TimeSeriesOptions, GraphFieldConfig>
  | Shown<"bargauge", BarGaugeOptions, {}>
  | Shown<"table", TableOptions, TableFieldOptions>
  | Shown<"heatmap", HeatmapOptions, HeatmapField>;

interface Annotation extends Omit<Json<AnnotationQuery>, "datasource" | "target"> {
  datasource: Source;
  target: { refId: string; expr: string; interval: string };
  titleFormat: string;
  textFormat: string;
}

export interface Board extends Omit<Json<Dashboard>, "panels" | "annotations" | "templating" | "links"> {
  id: null;
  uid: string;
  title: string;
  description: string;
  panels: (Panel | Json<RowPanel>)[];
  annotations: { list: Annotation[] };
  templating: { list: Json<VariableModel>[] };
  links: Json<DashboardLink>[];
}
