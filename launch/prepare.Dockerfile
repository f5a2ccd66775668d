# Image of `synclipmae prepare --engine ray` on GKE, for all pods of prepare_ray.yaml. Build it as the other one:
#   git archive HEAD | docker build --file launch/prepare.Dockerfile --tag IMAGE -
FROM python:3.12-slim
# KubeRay's health checks call wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
WORKDIR /synclipmae
COPY requirements.txt constraints.txt pyproject.toml README.md LICENSE ./
COPY synclipmae_jax synclipmae_jax
COPY configs configs
# ray[default] has the server that takes jobs.
RUN pip install --no-cache-dir -c requirements.txt -c constraints.txt --editable ".[ray,gcs]" "ray[default]"
