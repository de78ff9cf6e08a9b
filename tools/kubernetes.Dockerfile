# The image of driver and executors on Kubernetes: a Spark image with Python, our dependencies, the discovery
# script and the code. SPARK_IMAGE is one with Spark 4.0 or newer, Java 17 or 21 and Debian's or Ubuntu's apt.
ARG SPARK_IMAGE=spark:4.2.0-scala2.13-java17-ubuntu
FROM ${SPARK_IMAGE}

ARG PYTHON=python3.11
ARG ENGINE="vllm==0.27.1 transformers==5.22.2"
USER root
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ${PYTHON} ${PYTHON}-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /opt/captionlake
COPY pyproject.toml ./
RUN ${PYTHON} -m venv environment && \
    environment/bin/pip install --no-cache-dir uv==0.13.9 && \
    environment/bin/uv pip install --no-cache --python environment/bin/python \
      --requirement pyproject.toml --extra gpu ${ENGINE}
COPY captionlake.py dist/captionlake.zip conf/gpu_cluster.yaml tools/gpus.sh ./

# What NVIDIA's container runtime puts into the container: CUDA's driver, and nvidia-smi for gpus.sh.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
# Executors get no --py-files that are in the image (local://): Spark takes them for being there already.
ENV PYSPARK_PYTHON=/opt/captionlake/environment/bin/python PYTHONPATH=/opt/captionlake/captionlake.zip
# Driver and executors put the jars that they fetch where they start, so that has to be Spark's own folder.
WORKDIR /opt/spark/work-dir
ARG spark_uid=185
USER ${spark_uid}
