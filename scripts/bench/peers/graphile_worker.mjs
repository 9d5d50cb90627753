// Measures Graphile Worker: one process whose task does nothing. Its settings are those that its page on performance
// names with its own figures: 24 concurrent jobs, 25 connections, a local queue of 500, completions in batches.
import { once } from "node:events";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// The packages are installed in another folder than this file's.
const require = createRequire(process.env.PEER_PACKAGES + "/");
const { Logger, run, runMigrations } = require("graphile-worker");
const { Pool } = require("pg");

const pool = new Pool({ connectionString: process.env.PEER_DATABASE_URL, max: 25 });
const preset = {
  worker: {
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

await runMigrations({ pgPool: pool, preset, logger });
// One statement, as its own add_jobs makes them; `json` becomes the job's payload as it is.
const { rowCount: jobs } = await pool.query(
  `SELECT graphile_worker.add_jobs(ARRAY(
     SELECT json_populate_record(NULL::graphile_worker.job_spec, json_build_object('identifier', 'bench', 'payload', body::json))
     FROM (${process.env.PEER_MESSAGES}) AS message (body)
   ))`,
);
await pool.query("VACUUM ANALYZE");

let handled = 0;
let finish;
const finished = new Promise((resolve) => (finish = resolve));
const taskList = {
  bench: () => {
    handled += 1;
    if (handled === jobs) finish();
  },
};

const lines = createInterface({ input: process.stdin });
process.stdout.write("ready\n");
await once(lines, "line");
const started = process.hrtime.bigint();
const cpuStarted = process.cpuUsage();
const runner = await run({ pgPool: pool, preset, taskList, logger, noHandleSignals: true });
await finished;
// It completes what is handled before it stops.
await runner.stop();
const seconds = Number(process.hrtime.bigint() - started) / 1e9;
const cpu = process.cpuUsage(cpuStarted);
const again = new Pool({ connectionString: process.env.PEER_DATABASE_URL, max: 1 });
const { rows } = await again.query("SELECT count(*)::integer AS left FROM graphile_worker._private_jobs");
process.stdout.write(
  JSON.stringify({
    seconds,
    cpu_seconds: (cpu.user + cpu.system) / 1e6,
    result: { published: handled - rows[0].left },
  }) + "\n",
);
process.exit(0);
