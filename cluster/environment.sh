# What every node, and every command said on it, is told. `ray up` brings it to all nodes.

export PATH="$HOME/alkd_env/bin:$PATH"

# The head's run root, on a disk of its own: records, the books (ledger and answers), MLflow's file.
export ALKD_HOME="$HOME/alkd_runs"
# Outputs that all nodes read and write: a folder that is there (NFS), s3://... or gs://...
export ALKD_STORAGE="/mnt/shared/alkd"

# Nobody without the cluster's token (~/.ray/auth_token) may run anything on it.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0

# MLflow's server as two processes instead of a dozen, and quiet.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_DISABLE_TELEMETRY=true
