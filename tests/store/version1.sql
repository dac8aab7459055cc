BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE autotune_measurements (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	config VARCHAR(512) NOT NULL, 
	outcome VARCHAR(32) NOT NULL, 
	reason TEXT NOT NULL, 
	samples_us TEXT NOT NULL, 
	relative_error FLOAT, 
	shared_memory_bytes INTEGER, 
	registers INTEGER, 
	spills INTEGER, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (study_id, config), 
	FOREIGN KEY(study_id) REFERENCES autotune_studies (id)
);
INSERT INTO "autotune_measurements" VALUES(1,1,'{"block_m": 16, "block_n": 64, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 2, "num_stages": 2, "num_ctas": 1}','ok','','[35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.789983','2026-11-25 14:31:34.790182');
INSERT INTO "autotune_measurements" VALUES(2,1,'{"block_m": 64, "block_n": 64, "block_k": 128, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 3, "num_ctas": 1}','ok','','[33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.803863','2026-11-25 14:31:34.804171');
INSERT INTO "autotune_measurements" VALUES(3,1,'{"block_m": 64, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 3, "num_ctas": 1}','ok','','[22.0, 22.022, 22.044, 22.066, 22.088, 22.0, 22.022, 22.044, 22.066, 22.088, 22.0, 22.022, 22.044, 22.066, 22.088]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.804658','2026-11-25 14:31:34.804859');
INSERT INTO "autotune_measurements" VALUES(4,1,'{"block_m": 16, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 4, "num_stages": 2, "num_ctas": 1}','ok','','[19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.812509','2026-11-25 14:31:34.812787');
INSERT INTO "autotune_measurements" VALUES(5,1,'{"block_m": 32, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 2, "num_ctas": 1}','ok','','[19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.838013','2026-11-25 14:31:34.838259');
INSERT INTO "autotune_measurements" VALUES(6,2,'{"block_m": 16, "block_n": 64, "block_k": 32, "num_warps": 2, "num_stages": 2, "num_ctas": 1}','ok','','[35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.881569','2026-11-25 14:31:34.881698');
INSERT INTO "autotune_measurements" VALUES(7,2,'{"block_m": 64, "block_n": 64, "block_k": 128, "num_warps": 8, "num_stages": 3, "num_ctas": 1}','ok','','[33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.882165','2026-11-25 14:31:34.882318');
INSERT INTO "autotune_measurements" VALUES(8,2,'{"block_m": 16, "block_n": 16, "block_k": 128, "num_warps": 4, "num_stages": 2, "num_ctas": 1}','ok','','[19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.887617','2026-11-25 14:31:34.887818');
INSERT INTO "autotune_measurements" VALUES(9,2,'{"block_m": 16, "block_n": 64, "block_k": 128, "num_warps": 2, "num_stages": 3, "num_ctas": 1}','too_slow','slower than the best so far beyond the noise','[33.314, 33.347, 33.38]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.888204','2026-11-25 14:31:34.888325');
INSERT INTO "autotune_measurements" VALUES(10,2,'{"block_m": 16, "block_n": 16, "block_k": 128, "num_warps": 8, "num_stages": 3, "num_ctas": 1}','too_slow','slower than the best so far beyond the noise','[22.0, 22.022, 22.044]',NULL,NULL,NULL,NULL,'2026-11-25 14:31:34.889688','2026-11-25 14:31:34.889877');
CREATE TABLE autotune_selections (
	study_id INTEGER NOT NULL, 
	selection TEXT NOT NULL, 
	PRIMARY KEY (study_id), 
	FOREIGN KEY(study_id) REFERENCES autotune_studies (id)
);
INSERT INTO "autotune_selections" VALUES(1,'{"shape": {"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16"}, "config": {"block_m": 16, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 4, "num_stages": 2, "num_ctas": 1}, "default": {"block_m": 16, "block_n": 64, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 2, "num_stages": 2, "num_ctas": 1}, "samples_us": [{"config": {"block_m": 16, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 4, "num_stages": 2, "num_ctas": 1}, "samples_us": [19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]}, {"config": {"block_m": 32, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 2, "num_ctas": 1}, "samples_us": [19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]}, {"config": {"block_m": 64, "block_n": 16, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 3, "num_ctas": 1}, "samples_us": [22.0, 22.022, 22.044, 22.066, 22.088, 22.0, 22.022, 22.044, 22.066, 22.088, 22.0, 22.022, 22.044, 22.066, 22.088]}, {"config": {"block_m": 64, "block_n": 64, "block_k": 128, "split_k": 8, "group_size_m": 8, "num_warps": 8, "num_stages": 3, "num_ctas": 1}, "samples_us": [33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447]}, {"config": {"block_m": 16, "block_n": 64, "block_k": 32, "split_k": 8, "group_size_m": 8, "num_warps": 2, "num_stages": 2, "num_ctas": 1}, "samples_us": [35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244]}], "ratio": [1.773818511248679, 1.7738161278934896, 1.7738401736584377], "trials": 5, "outcomes": {"ok": 5}, "states": []}');
INSERT INTO "autotune_selections" VALUES(2,'{"shape": {"op": "expand", "num_tokens": 64, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16", "slice_sizes": [4096, 1024, 1024], "add_inputs": true}, "config": {"block_m": 16, "block_n": 16, "block_k": 128, "num_warps": 4, "num_stages": 2, "num_ctas": 1}, "default": {"block_m": 16, "block_n": 64, "block_k": 32, "num_warps": 2, "num_stages": 2, "num_ctas": 1}, "samples_us": [{"config": {"block_m": 16, "block_n": 16, "block_k": 128, "num_warps": 4, "num_stages": 2, "num_ctas": 1}, "samples_us": [19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869, 19.79, 19.809, 19.829, 19.849, 19.869]}, {"config": {"block_m": 64, "block_n": 64, "block_k": 128, "num_warps": 8, "num_stages": 3, "num_ctas": 1}, "samples_us": [33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447, 33.314, 33.347, 33.38, 33.414, 33.447]}, {"config": {"block_m": 16, "block_n": 64, "block_k": 32, "num_warps": 2, "num_stages": 2, "num_ctas": 1}, "samples_us": [35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244, 35.103, 35.138, 35.173, 35.209, 35.244]}], "ratio": [1.773818511248679, 1.7738161278934896, 1.7738401736584377], "trials": 5, "outcomes": {"ok": 3, "too_slow": 2}, "states": []}');
CREATE TABLE autotune_studies (
	id INTEGER NOT NULL, 
	name VARCHAR(512) NOT NULL, 
	shape TEXT NOT NULL, 
	environment TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "autotune_studies" VALUES(1,'NVIDIA Test-GPU/builtin/shrink/m=16,k=4096,n=16,slices=3,max_loras=8','{"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16"}','{"gpu": "NVIDIA Test-GPU", "provider": "builtin", "provider_version": "1", "torch": "2.13.0", "triton": "3.6.0", "driver": "580"}');
INSERT INTO "autotune_studies" VALUES(2,'NVIDIA Test-GPU/builtin/expand/m=64,k=16,n=4096,slices=3,max_loras=8,sizes=4096+1024+1024','{"op": "expand", "num_tokens": 64, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16", "slice_sizes": [4096, 1024, 1024], "add_inputs": true}','{"gpu": "NVIDIA Test-GPU", "provider": "builtin", "provider_version": "1", "torch": "2.13.0", "triton": "3.6.0", "driver": "580"}');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'NVIDIA Test-GPU/builtin/shrink/m=16,k=4096,n=16,slices=3,max_loras=8');
INSERT INTO "studies" VALUES(2,'NVIDIA Test-GPU/builtin/expand/m=64,k=16,n=4096,slices=3,max_loras=8,sizes=4096+1024+1024');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MINIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',2,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["latency_us"]');
INSERT INTO "study_system_attributes" VALUES(2,2,'study:metric_names','["latency_us"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'shape','{"op": "shrink", "num_tokens": 16, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16"}');
INSERT INTO "study_user_attributes" VALUES(2,1,'environment','{"gpu": "NVIDIA Test-GPU", "provider": "builtin", "provider_version": "1", "torch": "2.13.0", "triton": "3.6.0", "driver": "580"}');
INSERT INTO "study_user_attributes" VALUES(3,2,'shape','{"op": "expand", "num_tokens": 64, "hidden_size": 4096, "rank": 16, "num_slices": 3, "max_loras": 8, "active_loras": 8, "dtype": "bfloat16", "slice_sizes": [4096, 1024, 1024], "add_inputs": true}');
INSERT INTO "study_user_attributes" VALUES(4,2,'environment','{"gpu": "NVIDIA Test-GPU", "provider": "builtin", "provider_version": "1", "torch": "2.13.0", "triton": "3.6.0", "driver": "580"}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,15,35.173,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,2,15,33.38,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,3,15,22.044,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,4,15,19.829,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,5,15,19.829,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(6,6,15,35.173,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(7,7,15,33.38,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(8,8,15,19.829,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(9,9,3,33.347,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(10,10,3,22.022,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(2,1,'block_n',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(3,1,'block_k',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(4,1,'split_k',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(5,1,'group_size_m',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(6,1,'num_warps',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(7,1,'num_stages',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(8,1,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(9,2,'block_m',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(10,2,'block_n',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(11,2,'block_k',128.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(12,2,'split_k',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(13,2,'group_size_m',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(14,2,'num_warps',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(15,2,'num_stages',3.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(16,2,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(17,3,'block_m',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(18,3,'block_n',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(19,3,'block_k',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(20,3,'split_k',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(21,3,'group_size_m',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(22,3,'num_warps',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(23,3,'num_stages',3.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(24,3,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(25,4,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(26,4,'block_n',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(27,4,'block_k',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(28,4,'split_k',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(29,4,'group_size_m',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(30,4,'num_warps',4.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(31,4,'num_stages',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(32,4,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(33,5,'block_m',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(34,5,'block_n',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(35,5,'block_k',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(36,5,'split_k',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(37,5,'group_size_m',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(38,5,'num_warps',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(39,5,'num_stages',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(40,5,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(41,6,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(42,6,'block_n',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(43,6,'block_k',32.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(44,6,'num_warps',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(45,6,'num_stages',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(46,6,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(47,7,'block_m',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(48,7,'block_n',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(49,7,'block_k',128.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(50,7,'num_warps',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(51,7,'num_stages',3.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(52,7,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(53,8,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(54,8,'block_n',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(55,8,'block_k',128.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(56,8,'num_warps',4.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(57,8,'num_stages',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(58,8,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(59,9,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(60,9,'block_n',64.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(61,9,'block_k',128.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(62,9,'num_warps',2.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(63,9,'num_stages',3.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(64,9,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(65,10,'block_m',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(66,10,'block_n',16.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(67,10,'block_k',128.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(68,10,'num_warps',8.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(69,10,'num_stages',3.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
INSERT INTO "trial_params" VALUES(70,10,'num_ctas',1.0,'{"name": "IntDistribution", "attributes": {"log": true, "step": 1, "low": 1, "high": 4096}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(2,2,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(3,3,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(4,4,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(5,5,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(6,6,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(7,7,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(8,8,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(9,9,'constraints:runs','0.0');
INSERT INTO "trial_system_attributes" VALUES(10,10,'constraints:runs','0.0');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(2,2,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(3,3,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(4,4,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(5,5,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(6,6,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(7,7,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(8,8,'outcome','"ok"');
INSERT INTO "trial_user_attributes" VALUES(9,9,'outcome','"too_slow"');
INSERT INTO "trial_user_attributes" VALUES(10,9,'reason','"slower than the best so far beyond the noise"');
INSERT INTO "trial_user_attributes" VALUES(11,10,'outcome','"too_slow"');
INSERT INTO "trial_user_attributes" VALUES(12,10,'reason','"slower than the best so far beyond the noise"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,35.173,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,33.38,'FINITE');
INSERT INTO "trial_values" VALUES(3,3,0,22.044,'FINITE');
INSERT INTO "trial_values" VALUES(4,4,0,19.829,'FINITE');
INSERT INTO "trial_values" VALUES(5,5,0,19.829,'FINITE');
INSERT INTO "trial_values" VALUES(6,6,0,35.173,'FINITE');
INSERT INTO "trial_values" VALUES(7,7,0,33.38,'FINITE');
INSERT INTO "trial_values" VALUES(8,8,0,19.829,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-25 14:31:34.789983','2026-11-25 14:31:34.790182');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-25 14:31:34.803863','2026-11-25 14:31:34.804171');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-25 14:31:34.804658','2026-11-25 14:31:34.804859');
INSERT INTO "trials" VALUES(4,3,1,'COMPLETE','2026-11-25 14:31:34.812509','2026-11-25 14:31:34.812787');
INSERT INTO "trials" VALUES(5,4,1,'COMPLETE','2026-11-25 14:31:34.838013','2026-11-25 14:31:34.838259');
INSERT INTO "trials" VALUES(6,0,2,'COMPLETE','2026-11-25 14:31:34.881569','2026-11-25 14:31:34.881698');
INSERT INTO "trials" VALUES(7,1,2,'COMPLETE','2026-11-25 14:31:34.882165','2026-11-25 14:31:34.882318');
INSERT INTO "trials" VALUES(8,2,2,'COMPLETE','2026-11-25 14:31:34.887617','2026-11-25 14:31:34.887818');
INSERT INTO "trials" VALUES(9,3,2,'PRUNED','2026-11-25 14:31:34.888204','2026-11-25 14:31:34.888325');
INSERT INTO "trials" VALUES(10,4,2,'PRUNED','2026-11-25 14:31:34.889688','2026-11-25 14:31:34.889877');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
