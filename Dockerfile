# The image that the compose files of docs/ name: docker build -t tidegate .
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin tidegate

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 4000 tidegate && install -d -o tidegate /var/lib/tidegate
COPY --from=build /source/target/release/tidegate /usr/local/bin/
USER tidegate
VOLUME /var/lib/tidegate
# Until the first key is made only loopback is bound, whatever stands here.
ENV TIDEGATE_DATA_DIR=/var/lib/tidegate TIDEGATE_LISTEN=0.0.0.0:4000
EXPOSE 4000
ENTRYPOINT ["tidegate"]
CMD ["serve"]
