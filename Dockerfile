# sac: compress documents, ask them, serve them. docs/how-to/install.md says how to build and run it.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
# A build of torch: cpu, or one for a CUDA version, such as cu128.
ARG TORCH_BACKEND=cpu
RUN python -m venv /opt/sac
ENV PATH=/opt/sac/bin:$PATH
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/${TORCH_BACKEND}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sac_rag ./sac_rag
COPY cli ./cli
COPY integrations ./integrations
ARG EXTRAS=serve,rerank
RUN pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/sac /opt/sac
ENV PATH=/opt/sac/bin:$PATH SAC_CACHE=/models HF_HOME=/models/hub PYTHONUNBUFFERED=1
RUN useradd --create-home sac && install -d -o sac -m 1777 /models /work
USER sac
# Names of models that the image is to hold; without any they are fetched when they are first used.
ARG MODELS=
RUN for model in ${MODELS}; do sac models pull "$model" || exit 1; done
VOLUME /models
WORKDIR /work
EXPOSE 8321
ENTRYPOINT ["sac"]
CMD ["--help"]
